"""Rows 34 to 38 and 40: poison, bad events, wrong clocks, limits, a lasting fault."""

import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from eventstore.values import MOST_AHEAD_MS
from ingest.v1.ingest_service_pb2 import (
    BatchSubmitEventsRequest,
    StreamEventsRequest,
)
from tests.faults.cgroups import Cgroup, cgroup
from tests.faults.conftest import Case
from tests.faults.ledger import execute, query
from tests.faults.load import describe, make_event
from tests.faults.rig import SERVICE, Rig, make_token
from tests.faults.supervisor import Member
from tests.faults.trial import Trial, counts, resident
from tests.faults.verdict import BROKER_LINES, CHILD_LINES
from tests.kit.caller import refusal_of
from tests.kit.databases import fresh_database
from tests.kit.processes import start_process
from tests.kit.waiting import eventually

_DESCRIPTORS = 64
#: What a worker without memory says.
_SHORT = ("MemoryError", "out of memory", "no thread can be started")


@pytest.mark.beside_others
@pytest.mark.row(34, "poison events: raise, crash, grow, loop, hang")
@pytest.mark.timeout(400)
def test_poison_events(trial: Trial, rig: Rig, case: Case) -> None:
    """Each ends FAILED with a reason after its attempts, and takes no neighbour along."""
    attempts = case.count(3, 5)
    settings = {"INGEST_MAX_ATTEMPTS": str(attempts)}
    with rig.changed(*rig.workers, **settings), _memory_killer(rig, 400 << 20):
        began = time.monotonic()
        poison = [trial.submit({"fault": kind}) for kind in ("raise", "exit", "grow", "loop")]
        # In C, where the time limit cannot strike.
        poison.append(trial.submit({"fault": "sleep", "seconds": 3_000}))
        load = trial.load()
        time.sleep(3)
        load.stop()
        trial.settle(120)
        took = time.monotonic() - began
        trial.verdict(
            may_fail=[trial.keys[event_id] for event_id in poison],
            may_crash=rig.workers,
            allowed=CHILD_LINES,
        )
    rows = query(
        rig.url,
        "SELECT id::text, status, attempts, processing_error FROM events"
        " WHERE id = ANY (%s::uuid[])",
        poison,
    )

    case.note(
        f"all final after {took:.0f} s and {attempts} attempts: {sorted({r[3] for r in rows})}"
    )
    assert {row[0]: row[1] for row in rows} == dict.fromkeys(poison, 4)
    # What crashes has one more, while nothing else is tried in that process.
    assert all(attempts - 1 <= row[2] <= attempts + 1 for row in rows)
    assert took <= 120


@pytest.mark.beside_others
@pytest.mark.row(34, "events that hang in a call into C, while Redis is away")
@pytest.mark.timeout(300)
def test_hanging_events(trial: Trial, rig: Rig, case: Case) -> None:
    """Then the sweepers do the work: they leave what hangs behind, and go on with what does not."""
    attempts = case.count(2, 5)
    with rig.changed(*rig.workers, INGEST_MAX_ATTEMPTS=str(attempts)):
        rig.redis.kill()
        hanging = [trial.submit({"fault": "sleep", "seconds": 3_000}) for _ in rig.workers]
        eventually(lambda: all(row[1] for row in _status_and_attempts(rig, hanging)), timeout=60)
        neighbours = [trial.submit({}) for _ in range(5)]
        drained = trial.settle(120)
        trial.verdict(allowed=BROKER_LINES, may_fail=[trial.keys[event_id] for event_id in hanging])
    case.note(f"all final after {drained:.0f} s and {attempts} attempts")
    assert set(_status_and_attempts(rig, hanging)) == {(4, attempts)}
    assert {row[0] for row in _status_and_attempts(rig, neighbours)} == {2}


@pytest.mark.beside_others
@pytest.mark.row(35, "one bad event among a thousand")
def test_one_bad_event(trial: Trial, rig: Rig, case: Case) -> None:
    """A batch is refused as a whole, a stream stores the others and names it: never between."""
    execute(
        rig.url,
        "CREATE FUNCTION fault_refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '22000'; END $$",
        "CREATE TRIGGER fault_refuse BEFORE INSERT ON events FOR EACH ROW"
        " WHEN (NEW.type = 'fault.refused') EXECUTE FUNCTION fault_refuse()",
    )
    trial.load()
    stub = trial.stub()
    try:
        for bad in ("", "fault.refused"):
            prefix = f"{trial.subject}-{bad or 'edge'}"
            events = [make_event(f"{prefix}-{number}") for number in range(1_000)]
            events[500].type = bad
            with pytest.raises(grpc.RpcError) as refused:
                stub.BatchSubmitEvents(
                    BatchSubmitEventsRequest(events=events), metadata=trial.metadata, timeout=30
                )
            assert describe(refused.value) == ("INVALID_ARGUMENT", "FIELD_INVALID")
            # The database does not say which one it is.
            named = refusal_of(refused.value).fields
            assert list(named) == ["events" if bad else "events[500].type"]
            assert not _stored(rig, prefix)
            for event in events:
                trial.journal.note("trial", "new", event.idempotency_key, "invoke")
            answer = stub.StreamEvents(
                iter(
                    [StreamEventsRequest(events=events[i : i + 100]) for i in range(0, 1_000, 100)]
                ),
                metadata=trial.metadata,
                timeout=30,
            )
            assert (answer.accepted, answer.rejected) == (999, 1)
            assert [rejection.index for rejection in answer.rejections] == [500]
            assert _stored(rig, prefix) == 999
    finally:
        execute(rig.url, "DROP TRIGGER fault_refuse ON events", "DROP FUNCTION fault_refuse")
    trial.verdict()
    case.note("at the edge and in the database: 0 of a batch, 999 of a stream")


@pytest.mark.beside_others
@pytest.mark.row(36, "wall clocks ten minutes off")
@pytest.mark.parametrize("seconds", [600, -600])
@pytest.mark.timeout(200)
def test_wrong_clocks(trial: Trial, rig: Rig, case: Case, seconds: int) -> None:
    """Leases, ids and receipts follow the database; only a token's life follows the server."""
    # To a clock that is behind, a token of now comes from the future: that is refused.
    trial.token = make_token(trial.subject, issued=min(0, seconds))
    with rig.changed(
        rig.server, *rig.workers, FAULTS_PLANT=f"skew={seconds}", INGEST_MAX_ATTEMPTS="3"
    ):
        rig.server_lines[0].broker.refuse()  # recovery only: that is where leases are
        slow = [trial.submit({"fault": "sleep", "seconds": 0.3}) for _ in range(5)]
        trial.load()
        time.sleep(case.count(2, 60))
        rig.server_lines[0].broker.accept()
        trial.verdict()
    _check_times(trial, rig, case, seconds)
    attempts = {row[1] for row in _status_and_attempts(rig, slow)}
    assert attempts == {1}, "a lease was taken back early"


@pytest.mark.beside_others
@pytest.mark.row(36, "a wall clock ten minutes off, and the database away when the server starts")
@pytest.mark.parametrize("seconds", [600, -600])
@pytest.mark.timeout(200)
def test_a_wrong_clock_and_nobody_to_ask(trial: Trial, rig: Rig, case: Case, seconds: int) -> None:
    """What is submitted before the database told its time is not stamped with another one."""
    trial.token = make_token(trial.subject, issued=min(0, seconds))
    line = rig.server_lines[0].database
    line.refuse()
    with rig.changed(rig.server, FAULTS_PLANT=f"skew={seconds}"):
        load = trial.load()
        eventually(
            lambda: (
                {entry.writer for entry in trial.history().facts("unknown").entries}
                >= set(load.plan.writers)
            )
        )
        line.accept()
        eventually(lambda: len(trial.history().facts("ok")) > 50, timeout=30)
        trial.verdict()
    _check_times(trial, rig, case, seconds)


def _check_times(trial: Trial, rig: Rig, case: Case, seconds: int) -> None:
    """Compare the times of the trial's events with the ledger's, which are PostgreSQL's own."""
    received_at, ids = query(
        rig.url,
        "SELECT max(abs(extract(epoch FROM e.received_at - l.at)))::float,"
        " max(abs(extract(epoch FROM e.received_at) * 1000 -"
        " ('x' || left(replace(e.id::text, '-', ''), 12))::bit(48)::bigint))::float"
        " FROM events e JOIN fault_ledger l ON l.event_id = e.id"
        " JOIN users u ON u.id = e.user_id WHERE u.subject = %s",
        trial.subject,
    )[0]

    case.note(f"{seconds:+} s: received_at within {received_at:.0f} s, ids within {ids:.0f} ms")
    assert received_at < 60
    assert ids <= MOST_AHEAD_MS


@pytest.mark.row(37, "few descriptors, little memory")
@pytest.mark.timeout(200)
def test_tight_limits(trial: Trial, rig: Rig, case: Case) -> None:
    """The processes refuse or die and are started again; nothing is lost either way."""
    load = trial.load(attempt_timeout=2.0)
    time.sleep(1)
    for member in (rig.server, rig.workers[0]):
        for pid in member.pids():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (_DESCRIPTORS, _DESCRIPTORS))
    channels = [
        grpc.insecure_channel(rig.target(), options=(("grpc.use_local_subchannel_pool", 1),))
        for _ in range(80)
    ]
    connected = [grpc.channel_ready_future(channel) for channel in channels]
    eventually(lambda: counts([rig.server.pid])[1] == _DESCRIPTORS)
    time.sleep(1)
    used = counts([rig.server.pid])[1]
    refused = sum(not future.done() for future in connected)
    for channel in channels:
        channel.close()
    limited = rig.workers[1]
    restarts, said = len(limited.restarts), len(limited.stderr())
    for pid in limited.pids():
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (size + (4 << 20),) * 2)
    time.sleep(case.count(2, 30))
    # The other one stands still: what takes memory comes to the one that has none.
    rig.workers[0].signal_all(signal.SIGSTOP)
    greedy = trial.submit({"fault": "take", "bytes": 128 << 20})
    short = eventually(
        lambda: (
            [f"ended with {restart.code}" for restart in limited.restarts[restarts:]]
            or [words for words in _SHORT if words in limited.stderr()[said:]]
        ),
        timeout=20,
    )
    load.stop()
    for member in (rig.server, *rig.workers):
        member.kill_and_wait()
    history = trial.verdict(
        # On a busy machine all its attempts may come before the other worker goes on.
        may_fail=[trial.keys[greedy]],
        may_crash=(rig.server, *rig.workers),
        allowed=[
            *CHILD_LINES,
            r"Too many open files",
            r"OSError",
            r"MemoryError",
            r"EMFILE",
            r"no thread can be started.*process_ended",
        ],
    )

    case.note(
        f"{used} descriptors used, {refused} of {len(channels)} connections refused; memory:"
        f" {short}; {len(history.facts('unknown'))} attempts unknown"
    )
    assert used == _DESCRIPTORS
    assert refused


@pytest.mark.beside_others
@pytest.mark.row(37, "256 MB for each, by a cgroup")
@pytest.mark.timeout(300)
def test_little_memory(trial: Trial, rig: Rig, case: Case) -> None:
    """The kernel ends a worker that takes more; its neighbours and the other events go on."""
    with _confined(rig, case, "memory") as groups:
        restarts = _restarts(rig)
        for group in groups:
            group.limit(256 << 20)
        load = trial.load()
        greedy = trial.submit({"fault": "grow"})
        eventually(lambda: _status_and_attempts(rig, [greedy])[0][0] == 4, timeout=120)
        time.sleep(case.count(2, 30))
        load.stop()
        trial.verdict(may_fail=[trial.keys[greedy]], may_crash=rig.workers, allowed=CHILD_LINES)
        more = [now - before for now, before in zip(_restarts(rig), restarts, strict=True)]
    case.note(f"server and workers were started again {more} times")
    assert more[0] == 0
    assert sum(more) >= 2


@pytest.mark.beside_others
@pytest.mark.row(37, "not one thread more, by a cgroup")
@pytest.mark.timeout(300)
def test_few_threads(trial: Trial, rig: Rig, case: Case) -> None:
    """A server that serves needs none; a worker that does ends, until it may have them."""
    with _confined(rig, case, "pids") as groups:
        restarts = _restarts(rig)
        load = trial.load()
        time.sleep(1)
        for group in groups:
            group.limit(group.tasks)
        # More at a time than before: each takes a thread of its own.
        slow = [trial.submit({"fault": "sleep", "seconds": 0.3}) for _ in range(12)]
        eventually(lambda: sum(_restarts(rig)) > sum(restarts), timeout=60)
        time.sleep(case.count(2, 30))
        for group in groups[1:]:
            group.limit(10_000)
        load.stop()
        trial.verdict(
            # What was in the hands of a worker that ended had its attempts.
            may_fail=[trial.keys[event_id] for event_id in slow],
            may_crash=rig.workers,
            allowed=[*CHILD_LINES, r"no thread can be started.*process_ended"],
        )
        more = [now - before for now, before in zip(_restarts(rig), restarts, strict=True)]
    case.note(f"server and workers were started again {more} times")
    assert more[0] == 0


def _restarts(rig: Rig) -> list[int]:
    return [len(member.restarts) for member in rig.used]


@contextmanager
def _confined(rig: Rig, case: Case, controller: str) -> Iterator[list[Cgroup]]:
    """Run the server and each worker in a cgroup of its own, from their start on."""
    with ExitStack() as stack:
        groups = []
        for member in rig.used:
            group = stack.enter_context(cgroup(case, controller))
            plant = {"FAULTS_PLANT": f"cgroup={group.folder}", "INGEST_MAX_ATTEMPTS": "1"}
            stack.enter_context(rig.changed(member, **plant))
            groups.append(group)
        yield groups


@pytest.mark.beside_others
@pytest.mark.row(38, "everything started twice")
@pytest.mark.timeout(200)
def test_started_twice(trial: Trial, rig: Rig, case: Case, tmp_path: Path) -> None:
    """A second server on the port says so and ends; sweepers and migrations get along."""
    trial.load()
    lines = rig.server_lines[1]
    environment = rig.environment(lines, INGEST_LISTEN=f"127.0.0.1:{rig.ports[0]}")
    second = start_process([SERVICE, "serve"], tmp_path, env=environment)
    assert second.wait(20) == 2
    assert "INGEST_LISTEN" in second.stderr()
    sweepers = [start_process([SERVICE, "sweep"], tmp_path, env=environment) for _ in range(3)]
    assert [sweeper.wait(60) for sweeper in sweepers] == [0, 0, 0]
    with fresh_database(rig.url) as empty:
        migrators = [
            start_process(
                [SERVICE, "migrate"], tmp_path, env={**environment, "INGEST_DATABASE_URL": empty}
            )
            for _ in range(3)
        ]
        assert [migrator.wait(60) for migrator in migrators] == [0, 0, 0]
    trial.verdict()
    case.note(second.stderr().splitlines()[-1][:100])


@pytest.mark.row(40, "a minority that never comes back")
@pytest.mark.timeout(300)
def test_a_lasting_fault(trial: Trial, rig: Rig, case: Case) -> None:
    """One of two workers hangs for good, then Redis goes for good: the rest finishes."""
    load = trial.load()
    time.sleep(1)
    rig.workers[1].signal_all(signal.SIGSTOP)
    try:
        time.sleep(case.count(3, 60))
        rig.redis.kill()
        time.sleep(case.count(2, 60))  # the fault lasts so long
        load.stop()
        drained = trial.settle(60)
        trial.verdict(allowed=BROKER_LINES)
    finally:
        rig.workers[1].signal_all(signal.SIGCONT)
        rig.workers[1].kill_and_wait()
    case.note(f"drained in {drained:.1f} s without them")


def _status_and_attempts(rig: Rig, event_ids: list[str]) -> list[tuple[int, int]]:
    return [
        (row[0], row[1])
        for row in query(
            rig.url, "SELECT status, attempts FROM events WHERE id = ANY (%s::uuid[])", event_ids
        )
    ]


def _stored(rig: Rig, prefix: str) -> int:
    return int(
        query(rig.url, "SELECT count(*) FROM events WHERE idempotency_key LIKE %s", f"{prefix}-%")[
            0
        ][0]
    )


@contextmanager
def _memory_killer(rig: Rig, limit: int) -> Iterator[None]:
    """Do what the kernel does when memory ends: SIGKILL for the process that has too much."""
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(0.1):
            for pid in _pids(rig.workers):
                if resident([pid]) > limit:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stopped.set()
        watcher.join()


def _pids(members: "list[Member]") -> list[int]:
    return [pid for member in members if member.started for pid in member.pids()]
