"""Row 22: a process of our own stands still in the middle of a transaction, with locks."""

import signal
import time
from collections.abc import Callable

import psycopg2
import pytest

from tests.faults.conftest import Case
from tests.faults.ledger import execute, query
from tests.faults.rig import Rig
from tests.faults.trial import Trial
from tests.kit.proxy import Point
from tests.kit.waiting import eventually

FINISH = b"EXECUTE ingest_finish"
COMMIT = b"COMMIT\x00"
COPY = b"COPY events"
#: Seconds after which PostgreSQL cuts a session of ours that is idle in a transaction, and what a
#: busy machine may add to that.
_LIMIT = 10.0
_LATE = 2.0
#: Nobody who is at work is idle in a transaction for longer.
_IDLERS = """
SELECT pid FROM pg_stat_activity
WHERE state = 'idle in transaction' AND state_change < clock_timestamp() - interval '1 second'
"""
_WHOLE_TABLE = "BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE; COMMIT"
_EVENT = "SELECT status FROM events WHERE id = %s"
_NOTE = "a foreign idler is not ours to cut: that is its own or the database's setting"


@pytest.mark.beside_others
@pytest.mark.row(22, "a worker of ours stands still in a transaction")
@pytest.mark.timeout(200)
def test_a_stopped_worker_loses_its_locks(trial: Trial, rig: Rig, case: Case) -> None:
    """PostgreSQL cuts its session, another worker gets the row, and nobody else notices."""
    traps = [line.database.trap(FINISH, Point.AFTER) for line in rig.worker_lines]
    held = trial.submit({})
    eventually(lambda: any(trap.sprung for trap in traps), timeout=15)
    victim = next(number for number, trap in enumerate(traps) if trap.sprung)
    traps[1 - victim].release()
    rig.workers[victim].signal_all(signal.SIGSTOP)
    stopped = time.monotonic()
    idlers = eventually(lambda: query(rig.url, _IDLERS))
    with pytest.raises(psycopg2.errors.LockNotAvailable):
        query(rig.url, f"{_EVENT} FOR UPDATE NOWAIT", held)
    load = trial.load()
    took = _seconds(stopped, lambda: query(rig.url, f"{_EVENT} FOR UPDATE", held))
    cut = _cut(rig, idlers)
    # By the sweeper and the other worker; this one stands still as before.
    eventually(lambda: query(rig.url, _EVENT, held)[0][0] == 2, timeout=10, interval=0.1)
    done = time.monotonic() - stopped
    load.stop()
    during = trial.history()
    rig.workers[victim].signal_all(signal.SIGCONT)
    traps[victim].release()
    trial.verdict()

    case.note(
        f"a worker's lock free after {took:.1f} s, its event done after {done:.1f} s; {_NOTE}"
    )
    assert cut
    assert _LIMIT - _LATE <= took <= _LIMIT + _LATE
    assert during.facts("ok", op="new", after=stopped)
    assert not during.facts("unknown", after=stopped)


@pytest.mark.beside_others
@pytest.mark.row(22, "a server of ours stands still in a transaction")
@pytest.mark.timeout(200)
def test_a_stopped_server_loses_its_locks(trial: Trial, rig: Rig, case: Case) -> None:
    """PostgreSQL cuts its session, and a migration that waits for the table gets it."""
    trap = rig.server_lines[0].database.trap(COMMIT, Point.BEFORE, first=COPY)
    trial.load()
    trap.wait()
    rig.server.signal_all(signal.SIGSTOP)
    stopped = time.monotonic()
    idlers = eventually(lambda: query(rig.url, _IDLERS))
    took = _seconds(stopped, lambda: execute(rig.url, _WHOLE_TABLE))
    cut = _cut(rig, idlers)
    rig.server.signal_all(signal.SIGCONT)
    trap.release()
    resumed = time.monotonic()
    # Time for the load to be answered by the server that goes on.
    time.sleep(3)
    history = trial.verdict()

    again = history.facts("ok", op="new", after=resumed).entries[0].at - resumed
    case.note(f"a server's lock free after {took:.1f} s; first OK {again:.1f} s after SIGCONT")
    assert cut
    assert _LIMIT - _LATE <= took <= _LIMIT + _LATE
    assert again <= 2


def _seconds(since: float, action: Callable[[], object]) -> float:
    action()
    return time.monotonic() - since


def _cut(rig: Rig, idlers: list[tuple[int]]) -> bool:
    """Whether there were sessions, and all of them are gone."""
    left = {pid for (pid,) in query(rig.url, "SELECT pid FROM pg_stat_activity")}
    return bool(idlers) and not left & {pid for (pid,) in idlers}
