"""The smoke of the fault suite: the promise under kills and a missing broker, in two minutes."""

import time

import pytest

from tests.faults.conftest import Case
from tests.faults.embedded import EmbeddedRig
from tests.faults.rig import Rig
from tests.faults.trial import Trial
from tests.faults.verdict import BROKER_LINES


@pytest.mark.beside_others
@pytest.mark.row("S1", "SIGKILL of server and workers at random")
def test_nothing_is_lost_when_processes_are_killed(trial: Trial, rig: Rig, case: Case) -> None:
    """Every acknowledged event is processed, once, whoever dies."""
    trial.load()
    for _ in range(5):
        time.sleep(case.random.uniform(0.3, 1.2))
        restart = case.random.choice([rig.server, *rig.workers]).kill_and_wait()
        assert restart.ready - restart.died <= 6
    history = trial.verdict()

    assert not history.facts("gave_up")
    case.note(f"{len(history.facts('ok'))} OK, {len(history.facts('unknown'))} unknown")


@pytest.mark.row("S2", "Redis stopped under load")
def test_submits_go_on_without_redis(trial: Trial, rig: Rig, case: Case) -> None:
    """A submit is no slower, and the sweeper processes what no message announced."""
    load = trial.load()
    time.sleep(2)
    stopped = time.monotonic()
    rig.redis.kill()
    time.sleep(4)
    ended = time.monotonic()
    rig.redis.start()
    after = trial.verdict(allowed=BROKER_LINES)

    unary_before = trial.unary_ms(before=stopped)
    unary_without = trial.steady_ms(load, stopped, ended)
    case.note(f"p99 {unary_before:.0f} ms with, {unary_without:.0f} ms without Redis")
    assert unary_without <= unary_before + 100
    assert not after.facts("unknown")


@pytest.mark.beside_others
@pytest.mark.row("S3", "everything killed at once")
def test_nothing_is_lost_when_everything_is_killed(trial: Trial, rig: Rig) -> None:
    """PostgreSQL, Redis, server and workers die together and come back."""
    trial.load()
    time.sleep(2)
    rig.postgres.kill()
    rig.redis.kill()
    for member in (rig.server, *rig.workers):
        member.kill()
    time.sleep(0.5)
    rig.postgres.start()
    rig.redis.start()
    time.sleep(3)

    history = trial.verdict(allowed=BROKER_LINES)

    assert not history.facts("gave_up")


@pytest.mark.beside_others
@pytest.mark.row("S4", "SIGKILL of the embedded service")
def test_the_embedded_service_survives_kills(case: Case) -> None:
    """SQLite keeps what was answered, and the next start picks up what was pending."""
    rig = EmbeddedRig()
    try:
        trial = Trial(rig, seed=case.seed)
        trial.load()
        for _ in range(3):
            time.sleep(case.random.uniform(0.5, 1.5))
            rig.service.kill_and_wait()
        trial.verdict()
        assert rig.ledger.query("PRAGMA integrity_check") == [("ok",)]
    finally:
        rig.close()
