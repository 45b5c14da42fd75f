"""Rows 21 to 23: connections are used up, others hold locks, many write the same keys."""

import signal
import threading
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import grpc
import psycopg2
import pytest

from eventstore.engine import build_engine
from ingest.v1.ingest_service_pb2 import (
    BatchSubmitEventsRequest,
)
from tests.faults.conftest import Case
from tests.faults.ledger import execute, query
from tests.faults.load import BROKEN, describe, make_event
from tests.faults.probe import Probe
from tests.faults.rig import Rig
from tests.faults.trial import Trial
from tests.kit.waiting import eventually

#: How many of some events are not final.
_OPEN = "SELECT count(*) FROM events WHERE status = 1 AND id = ANY (%s::uuid[])"
#: The connections that new events are written on.
_INTAKE = "FROM pg_stat_activity WHERE application_name = 'ingest-intake'"


@pytest.mark.row(21, "connections used up")
@pytest.mark.timeout(200)
def test_no_connection_is_left(trial: Trial, rig: Rig, case: Case) -> None:
    """The service keeps those it has; one that it must renew is refused cleanly."""
    load = trial.load()
    time.sleep(1.5)
    with ExitStack() as hogs, Probe(rig.target()) as probe:

        def fill() -> int:
            url = rig.url.replace("//postgres@", "//ingest@")
            taken = 0
            with suppress(psycopg2.OperationalError):
                while True:
                    hogs.enter_context(closing(psycopg2.connect(url)))
                    taken += 1
            return taken

        fill()
        began = time.monotonic()
        rig.server_lines[0].broker.refuse()  # nobody but the sweeper finds the next event
        swept = trial.submit({})
        eventually(lambda: not query(rig.url, _OPEN, [swept])[0][0], timeout=20)
        rig.server_lines[0].broker.accept()
        time.sleep(2)
        kept = time.monotonic()
        # The server stands still, so that it is not quicker to take the slots again.
        rig.server.signal_all(signal.SIGSTOP)
        execute(rig.url, f"SELECT pg_terminate_backend(pid) {_INTAKE}")
        eventually(lambda: not query(rig.url, f"SELECT {_INTAKE}"))
        # Our own questions need a moment to leave their slot.
        eventually(lambda: not fill(), interval=0.1)
        rig.server.signal_all(signal.SIGCONT)
        resumed = time.monotonic()
        time.sleep(3)
        freed = time.monotonic()
    time.sleep(2)
    load.stop()
    history = trial.verdict()

    refused = history.facts("unknown", after=resumed, before=freed).entries
    case.note(
        f"{len(history.facts('ok', after=began, before=kept))} OK without a free slot, then"
        f" {len(refused)} refused without a connection"
    )
    assert not history.facts("unknown", after=began, before=kept)
    assert refused
    assert {entry.code for entry in refused} <= BROKEN
    # The answer to what was committed before may be read late.
    assert not history.facts("ok", op="new", before=freed).begun(after=resumed)
    assert probe.answers(began, kept) == {"SERVING"}
    assert history.facts("ok", op="new", after=freed)


@pytest.mark.row(22, "locks held by somebody else")
@pytest.mark.timeout(200)
def test_foreign_locks(trial: Trial, rig: Rig, case: Case) -> None:
    """A locked table is answered within three seconds; our own idlers are cut by the server."""
    load = trial.load()
    time.sleep(1.5)
    with closing(psycopg2.connect(rig.url)) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        locked = time.monotonic()
        time.sleep(case.count(5, 20))
        connection.rollback()
    freed = time.monotonic()
    time.sleep(2)
    load.stop()
    history = trial.verdict()
    engine = build_engine(rig.url, name="idler", pool_size=1)
    with engine.connect() as idler:
        limit = idler.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar()
    engine.dispose()

    unknown = history.facts("unknown", after=locked, before=freed).entries
    slowest = max(entry.ms for entry in unknown if entry.writer.startswith("unary"))
    case.note(f"slowest refusal {slowest:.0f} ms; idlers are cut after {limit}")
    assert slowest <= 3_000
    assert {entry.code for entry in unknown} <= BROKEN
    assert limit == "10s"


@pytest.mark.row(22, "rows locked by somebody else")
@pytest.mark.timeout(200)
def test_foreign_row_locks(trial: Trial, rig: Rig, case: Case, tmp_path: Path) -> None:
    """Whoever locks some open rows keeps these from their end, and no other row or caller."""
    switch = tmp_path / "go"
    tmp_path.chmod(0o755)
    trial.load()
    with (
        rig.changed(*rig.workers, INGEST_MAX_ATTEMPTS="50"),
        closing(psycopg2.connect(rig.url)) as connection,
        connection.cursor() as cursor,
    ):
        ids = [trial.submit({"fault": "until", "file": str(switch)}) for _ in range(5)]
        cursor.execute(_OPEN.replace("count(*)", "id") + " FOR UPDATE", (ids,))
        assert cursor.rowcount == len(ids)
        locked = time.monotonic()
        switch.touch()
        time.sleep(case.count(5, 20))
        others = trial.submit({})
        eventually(lambda: not query(rig.url, _OPEN, [others])[0][0], timeout=10)
        assert query(rig.url, _OPEN, ids)[0][0] == len(ids)
        freed = time.monotonic()
        connection.rollback()
        history = trial.verdict()

    during = len(history.facts("ok", op="new", after=locked, before=freed))
    case.note(f"{during} OK beside the locks, slowest {trial.unary_ms(locked, freed, 1):.0f} ms")
    assert during
    assert not history.facts("unknown", after=locked, before=freed)


@pytest.mark.beside_others
@pytest.mark.row(23, "the same 500 keys in opposite orders")
@pytest.mark.timeout(300)
def test_no_deadlocks(trial: Trial, rig: Rig, case: Case) -> None:
    """Eight callers on two servers, none of which waits for another in a circle."""
    rig.servers[1].start()
    trial.load()
    events = [make_event(f"{trial.subject}-dead-{number}") for number in range(500)]
    for event in events:
        trial.journal.note("trial", "new", event.idempotency_key, "invoke")
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = query(rig.url, deadlocks)[0][0]
    ids: list[list[str]] = []
    failures: list[str] = []

    def submit(number: int) -> None:
        for turn in range(case.count(5, 40)):
            ordered = events if (number + turn) % 2 else events[::-1]
            try:
                answer = trial.stub(number % 2).BatchSubmitEvents(
                    BatchSubmitEventsRequest(events=ordered), metadata=trial.metadata, timeout=30
                )
            except grpc.RpcError as error:
                failures.append(" ".join(describe(error)))
            else:
                found = [receipt.event_id for receipt in answer.receipts]
                ids.append(found if (number + turn) % 2 else found[::-1])

    callers = [threading.Thread(target=submit, args=(number,)) for number in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    time.sleep(1)
    trial.verdict()

    assert not failures
    assert len({tuple(found) for found in ids}) == 1
    assert query(rig.url, deadlocks)[0][0] == before
    case.note(f"{len(ids)} batches, 0 deadlocks")
