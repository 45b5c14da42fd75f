"""Rows 1 to 7: processes are killed, at random and at the worst moments, or stand still."""

import os
import signal
import time

import pytest

from eventstore.values import OFFERED
from tests.faults.conftest import Case
from tests.faults.ledger import query
from tests.faults.probe import health
from tests.faults.rig import BRISK, Rig
from tests.faults.supervisor import Member
from tests.faults.trial import Trial
from tests.faults.verdict import BROKER_LINES
from tests.kit.processes import has_ended
from tests.kit.proxy import Point, Trap
from tests.kit.waiting import eventually

COMMIT = b"COMMIT\x00"
COPY = b"COPY events"
#: A few events and their keys, in a statement that commits itself: calls and small streams.
ALONE = b"EXECUTE ingest_keyed"
CLAIM = b"EXECUTE ingest_waiting"
FINISH = b"EXECUTE ingest_finish"
#: Events under a lease, but for those that another thread of the stopped worker has just locked;
#: and how many of some events are not final.
_HELD = "SELECT id::text FROM events WHERE status = 1 AND lease_token <> %s FOR UPDATE SKIP LOCKED"
_OPEN = "SELECT count(*) FROM events WHERE status = 1 AND id = ANY (%s::uuid[])"


@pytest.mark.row(1, "SIGKILL of the server at random times")
@pytest.mark.timeout(900)
def test_a_killed_server_serves_again(trial: Trial, rig: Rig, case: Case) -> None:
    """Within three seconds each time; a client that repeats loses nothing."""
    trial.load()
    downs = []
    for _ in range(case.count(3, 100)):
        time.sleep(case.random.uniform(0.5, 2) if not case.long else case.random.uniform(2, 10))
        restart = rig.server.kill_and_wait()
        downs.append(restart.ready - restart.died)
    history = trial.verdict()

    case.note(f"{len(downs)} kills, longest gap {max(downs):.1f} s")
    assert max(downs) <= 3
    assert not history.facts("gave_up")


@pytest.mark.beside_others
@pytest.mark.row(1, "SIGKILL of one of two server processes")
@pytest.mark.timeout(900)
def test_one_of_two_server_processes_is_killed(trial: Trial, rig: Rig, case: Case) -> None:
    """The other one answers meanwhile, and their supervisor starts a new one."""
    with rig.changed(rig.server, INGEST_PROCESSES="2"):
        eventually(lambda: _started(trial) == 2)
        trial.take_counts()
        trial.load()
        gaps = []
        for turn in range(case.count(2, 50)):
            time.sleep(0.7)  # so much load between two kills
            # The older one, so that each is killed in turn: who is called is the kernel's choice.
            os.kill(rig.server.children()[0], signal.SIGKILL)
            killed = time.monotonic()
            eventually(lambda count=turn + 3: _started(trial) == count)  # type: ignore[misc]  # mypy: a default in a lambda
            gaps.append((killed, time.monotonic()))
        history = trial.verdict(allowed=[r'"event": "server_process_ended"'])

    answered = history.facts("ok", op="new")
    served = [len(answered.begun(after=killed, before=up)) for killed, up in gaps]
    case.note(f"{served} OK from the other one, in {[round(up - at, 1) for at, up in gaps]} s")
    assert all(served)
    assert len(trial.logs.lines("server_process_ended")) == len(gaps)
    assert not history.facts("gave_up")


@pytest.mark.beside_others
@pytest.mark.row(2, "SIGKILL of the server at named points")
@pytest.mark.parametrize(
    "point",
    ["mid-batch", "before-commit", "after-commit", "before-alone", "after-alone", "after-reply"],
)
@pytest.mark.timeout(900)
def test_a_server_killed_at_a_named_point(trial: Trial, rig: Rig, case: Case, point: str) -> None:
    """Held in the line to the database or the broker, then killed: exact without a hook inside."""
    line = rig.server_lines[0]
    trial.load()
    time.sleep(1)
    for _ in range(case.count(1, 50)):
        if point == "mid-batch":
            trap = line.database.trap(COPY, Point.AFTER)
        elif point == "before-commit":
            trap = line.database.trap(COMMIT, Point.BEFORE, first=COPY)
        elif point == "after-commit":
            trap = line.database.trap(COMMIT, Point.AFTER, first=COPY)
        elif point.endswith("alone"):
            moment = Point.BEFORE if point.startswith("before") else Point.AFTER
            trap = line.database.trap(ALONE, moment)
        else:
            trap = line.broker.trap(b"enqueue", Point.BEFORE)
        _kill_in(trap, rig.server, 0.1 if point == "after-reply" else 0)
        time.sleep(0.5)
    history = trial.verdict()

    case.note(point)
    assert not history.facts("gave_up")
    if point in {"after-commit", "after-alone"}:
        # What was committed and not answered is answered as a duplicate when it is sent again.
        assert any(entry.duplicate for entry in history.facts("ok", op="new").entries)


@pytest.mark.row(3, "SIGKILL of a worker in an actor")
@pytest.mark.parametrize("point", ["mid-actor", "before-commit", "after-commit"])
@pytest.mark.timeout(3600)
def test_a_worker_killed_at_a_named_point(trial: Trial, rig: Rig, case: Case, point: str) -> None:
    """What it had in hand is done again by another one, and once in effect."""
    trial.load()
    time.sleep(1)
    killed = 0.0
    for _ in range(case.count(1, 100)):
        database = rig.worker_lines[0].database
        trap = {
            "mid-actor": lambda line=database: line.trap(CLAIM, Point.AFTER),
            "before-commit": lambda line=database: line.trap(COMMIT, Point.BEFORE, first=FINISH),
            "after-commit": lambda line=database: line.trap(COMMIT, Point.AFTER, first=FINISH),
        }[point]()
        killed = _kill_in(trap, rig.workers[0])
    for load in trial.loads:
        load.stop()
    trial.settle()
    redone = time.monotonic() - killed
    trial.verdict()

    case.note(f"{point}: all final {redone:.1f} s after the last kill, with the load's end")
    assert redone <= (15 if case.long else float(BRISK["INGEST_LEASE_SECONDS"])) + 2


@pytest.mark.row(4, "SIGKILL of the worker's master alone")
def test_orphans_end_by_themselves(trial: Trial, rig: Rig, case: Case) -> None:
    """Within five seconds, and before the next generation works."""
    worker = rig.workers[0]
    worker.ends_orphans = False
    try:
        trial.load()
        for _ in range(case.count(1, 10)):
            # At any moment of Dramatiq's second.
            time.sleep(case.random.uniform(1, 2))
            orphans = [pid for pid in worker.pids() if pid != worker.pid]
            count, watch = len(worker.restarts), rig.worker_lines[0].database.watch(FINISH)
            worker.kill_alone()
            killed = time.monotonic()
            eventually(lambda pids=orphans: all(map(has_ended, pids)), timeout=5)  # type: ignore[misc]
            gone = time.monotonic() - killed
            worker.wait_restart(count)
            eventually(lambda seen=watch.seen: seen[-1][1] > killed)  # type: ignore[misc]  # noqa: B023  # asked at once
            last = max(at for at, since in watch.seen if since < killed)
            first = min(at for at, since in watch.seen if since > killed)
            case.note(
                f"orphans gone after {gone:.1f} s, their last work {first - last:.2f} s before the"
                " next ones' first"
            )
            assert last < first
        trial.verdict()
    finally:
        worker.ends_orphans = True


@pytest.mark.beside_others
@pytest.mark.row(5, "SIGKILL of everything at once")
@pytest.mark.timeout(1200)
def test_everything_killed_at_once_comes_back(trial: Trial, rig: Rig, case: Case) -> None:
    """PostgreSQL with fsync keeps what was answered; Redis comes back empty."""
    for _ in range(case.count(1, 20)):
        load = trial.load()
        time.sleep(case.random.uniform(1, 2))
        rig.postgres.kill()
        for member in (rig.server, *rig.workers):
            member.kill()
        rig.redis.kill()
        rig.postgres.start()
        rig.redis.start()
        time.sleep(3)
        load.stop()
        drained = trial.settle()
        case.note(f"drained in {drained:.1f} s")
    history = trial.verdict(allowed=BROKER_LINES)

    assert not history.facts("gave_up")


@pytest.mark.row(6, "SIGSTOP of a worker past its lease")
@pytest.mark.timeout(300)
def test_a_late_finish_is_refused(trial: Trial, rig: Rig, case: Case) -> None:
    """A recovery attempt wakes up after another one took its rows: it writes nothing."""
    # Leases that run out before PostgreSQL ends the transaction, which it does after ten seconds.
    with rig.changed(*rig.workers, **BRISK):
        rig.server_lines[0].broker.refuse()  # no message: every event takes the recovery path
        traps = [line.database.trap(FINISH, Point.BEFORE) for line in rig.worker_lines]
        trial.load()
        eventually(lambda: any(trap.sprung for trap in traps), timeout=15)
        victim = next(number for number, trap in enumerate(traps) if trap.sprung)
        traps[1 - victim].release()
        rig.workers[victim].signal_all(signal.SIGSTOP)
        stopped = time.monotonic()
        held = [row[0] for row in query(rig.url, _HELD, OFFERED)]
        eventually(lambda: not query(rig.url, _OPEN, held)[0][0], timeout=9, interval=0.1)
        case.note(f"done by another one after {time.monotonic() - stopped:.1f} s")
        traps[victim].release()
        rig.workers[victim].signal_all(signal.SIGCONT)
        rig.server_lines[0].broker.accept()
        trial.verdict()

    late = [
        line
        for line in trial.logs.lines("event_processed")
        if line["process"] == f"worker{victim}" and line["recovered"] and line["count"] == 0
    ]
    assert late, "the late finish was never asked for, or wrote rows"


@pytest.mark.row(7, "SIGSTOP of the server")
@pytest.mark.timeout(120)
def test_a_server_that_stands_still(trial: Trial, rig: Rig, case: Case) -> None:
    """Clients time out cleanly, a probe sees it, and it goes on at once."""
    load = trial.load(attempt_timeout=1.0)
    time.sleep(1.5)
    rig.server.signal_all(signal.SIGSTOP)
    stopped = time.monotonic()
    seen, _ = health(rig.target(), timeout=1)
    time.sleep(case.count(4, 20) - (time.monotonic() - stopped))
    rig.server.signal_all(signal.SIGCONT)
    resumed = time.monotonic()
    time.sleep(2.5)
    load.stop()
    history = trial.verdict()

    again = history.facts("ok", op="new", after=resumed).entries[0].at - resumed
    codes = {entry.code for entry in history.facts("unknown", after=stopped).entries}
    case.note(f"probe saw {seen}; first OK {again:.1f} s after SIGCONT")
    assert seen != "SERVING"
    assert again <= 2
    assert codes <= {"DEADLINE_EXCEEDED", "UNAVAILABLE", "CANCELLED", "NO_RECEIPT"}


def _started(trial: Trial) -> int:
    return len(trial.logs.lines("server_started"))


def _kill_in(trap: Trap, member: Member, pause: float = 0.0) -> float:
    """Kill a member while it is held, wait for the next one, and return when it was killed."""
    trap.wait()
    time.sleep(pause)
    count = len(member.restarts)
    killed = time.monotonic()
    member.kill()
    trap.cut()
    member.wait_restart(count)
    return killed
