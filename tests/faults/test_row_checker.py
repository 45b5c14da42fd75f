"""Row 41, the control of the checker: each planted bug must turn the verdict red, none green."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import redis

from tests.faults.conftest import Case
from tests.faults.ledger import execute, query
from tests.faults.rig import BRISK, Rig
from tests.faults.torrent import Torrent, pour
from tests.faults.trial import Trial

#: Few attempts, so that an event which never succeeds is final soon.
_SETTINGS = {**BRISK, "INGEST_MAX_ATTEMPTS": "2"}
#: Seconds that a trial with a bug gets to settle.
_SETTLE = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A bug, what is done to the system that has it, and what the verdict must then say."""

    plant: str
    storm: Callable[[Trial, Rig], Sequence[str]]
    told: str


def _calm(trial: Trial, rig: Rig) -> Sequence[str]:
    """Nothing but load; almost every event is processed by its first delivery."""
    trial.load()
    time.sleep(3)
    found = trial.violations(settle=_SETTLE)
    late, total = query(
        rig.url,
        "SELECT count(*) FILTER (WHERE e.attempts > 0), count(*) FROM events e"
        " JOIN users u ON u.id = e.user_id WHERE u.subject = %s",
        trial.subject,
    )[0]
    if late > total * 0.05:
        found.append(f"first deliveries are lost: {late} of {total} were swept")
    return found


def _keyless(trial: Trial, rig: Rig) -> Sequence[str]:
    """Events without keys, from a client that only counts."""
    torrent = Torrent.of(pour(trial, rig.ports[0], rate=20, seconds=2, events=10))
    return trial.keyless_violations(10 * torrent.taken, _SETTLE)


def _kills(trial: Trial, rig: Rig) -> Sequence[str]:
    """The server dies under load."""
    trial.load()
    for _ in range(3):
        time.sleep(0.7)
        rig.server.kill_and_wait()
    return trial.violations(settle=_SETTLE)


def _database_dies(trial: Trial, rig: Rig) -> Sequence[str]:
    """PostgreSQL dies under load and comes back.

    The worker stands still before: its commits would bring to disk what others left in memory.
    """
    trial.load()
    for _ in range(3):
        time.sleep(0.5)
        rig.workers[0].signal_all(signal.SIGSTOP)
        time.sleep(0.3)
        rig.postgres.kill()
        rig.postgres.start()
        rig.workers[0].signal_all(signal.SIGCONT)
    time.sleep(1.5)
    return trial.violations(settle=_SETTLE)


def _flushes(trial: Trial, rig: Rig) -> Sequence[str]:
    """Redis forgets messages that nobody has fetched yet: the worker stands still meanwhile."""
    trial.load()
    with redis.Redis.from_url(rig.redis.url) as client:
        for _ in range(3):
            rig.workers[0].signal_all(signal.SIGSTOP)
            time.sleep(0.3)
            client.flushall()
            rig.workers[0].signal_all(signal.SIGCONT)
            time.sleep(0.3)
    return trial.violations(settle=_SETTLE)


def _poison(trial: Trial, rig: Rig) -> Sequence[str]:
    """One event always fails."""
    event_id = trial.submit({"fault": "raise"})
    return trial.violations(settle=_SETTLE, may_fail=[trial.keys[event_id]])


def _slow_recovery(trial: Trial, rig: Rig) -> Sequence[str]:
    """Slow events take the recovery path, on workers whose clock is ahead."""
    rig.server_lines[0].broker.refuse()
    ids = [trial.submit({"fault": "sleep", "seconds": 0.9}) for _ in range(2)]
    found = trial.violations(settle=_SETTLE * 2)
    attempts = query(rig.url, "SELECT max(attempts) FROM events WHERE id = ANY (%s::uuid[])", ids)
    if attempts[0][0] > 1:
        found.append(f"a lease was taken back early: {attempts[0][0]} attempts")
    return found


CONTROLS = (
    Control(plant="acknowledge-before-commit", storm=_kills, told="acknowledged but missing"),
    Control(plant="no-sweeper", storm=_flushes, told="left open"),
    Control(plant="no-unique-key", storm=_calm, told="stored twice"),
    Control(plant="wall-clock-lease skew=600", storm=_slow_recovery, told="taken back early"),
    Control(plant="own-clock-lease skew=600", storm=_slow_recovery, told="taken back early"),
    Control(plant="attempt-not-counted", storm=_poison, told="left open"),
    Control(plant="swallow-failed-group", storm=_database_dies, told="acknowledged but missing"),
    Control(plant="dispatch-before-commit", storm=_calm, told="first deliveries are lost"),
    Control(plant="duplicate-as-new", storm=_calm, told="a duplicate was answered as new"),
    Control(plant="no-final-guard", storm=_calm, told="effects are"),
    Control(plant="no-final-guard", storm=_keyless, told="effects are 2"),
    Control(plant="asynchronous-commit", storm=_database_dies, told="acknowledged but missing"),
    Control(plant="crash=1.5", storm=_calm, told="server0 ended with -11"),
    Control(plant="receipt-lost", storm=_calm, told="argument 2 is shorter"),
)
_STORMS = (_calm, _keyless, _kills, _database_dies, _flushes, _poison, _slow_recovery)


@pytest.fixture(scope="module")
def plain() -> Iterator[Rig]:
    """A rig with durable PostgreSQL, whose processes each test starts with its own bug."""
    rig = Rig(durable=True, settings=_SETTINGS, workers=1)
    # What was committed without waiting stays in memory for longer, and is lost for sure.
    execute(
        rig.url,
        "ALTER SYSTEM SET wal_writer_delay = '5s'",
        "ALTER SYSTEM SET wal_writer_flush_after = '1GB'",
        "SELECT pg_reload_conf()",
    )
    yield rig
    rig.close()


def _run(rig: Rig, case: Case, plant: str, storm: Callable[[Trial, Rig], Sequence[str]]) -> str:
    members = (rig.server, rig.workers[0])
    with rig.changed(*members, FAULTS_PLANT=plant):
        trial = Trial(rig, seed=case.seed)
        try:
            return "\n".join(storm(trial, rig))
        finally:
            for load in trial.loads:
                load.kill()
            rig.server_lines[0].broker.heal()
            with redis.Redis.from_url(rig.redis.url) as client:
                client.flushall()


@pytest.mark.beside_others
@pytest.mark.row(41, "checker control: a planted bug")
@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.plant)
def test_a_planted_bug_turns_the_verdict_red(plain: Rig, case: Case, control: Control) -> None:
    """Told for the reason that it is there for, not for any other."""
    told = _run(plain, case, control.plant, control.storm)

    caught = [line for line in told.splitlines() if control.told in line]
    case.note(f"{control.plant}: {caught[-1] if caught else 'NOT CAUGHT'}")
    assert control.told in told, f"not caught; told: {told or 'nothing'}"


@pytest.mark.beside_others
@pytest.mark.row(41, "checker control: no bug")
@pytest.mark.parametrize("storm", _STORMS, ids=lambda storm: storm.__name__.strip("_"))
def test_without_a_bug_the_verdict_is_green(
    plain: Rig, case: Case, storm: Callable[[Trial, Rig], Sequence[str]]
) -> None:
    """The same storms find nothing in the product as it is."""
    plant = "skew=600" if storm is _slow_recovery else ""
    case.note(storm.__name__.strip("_"))
    assert _run(plain, case, plant, storm) == ""
