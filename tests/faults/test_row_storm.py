"""Row 39: everything mixed, by a seed."""

from collections import Counter

import pytest

from tests.faults.conftest import Case
from tests.faults.rig import Rig
from tests.faults.storm import rage, schedule
from tests.faults.trial import Trial
from tests.faults.verdict import BROKER_LINES

_SHORT_SECONDS = 20.0
_LONG_SECONDS = 1_800.0


@pytest.mark.beside_others
@pytest.mark.row(39, "mixed storm, seeded")
@pytest.mark.timeout(40_000)
def test_the_storm(trial: Trial, rig: Rig, case: Case) -> None:
    """Whatever mix of faults: nothing is lost, nothing is done twice, all comes to its end."""
    seconds = case.storm_seconds or (_LONG_SECONDS if case.long else _SHORT_SECONDS)
    lanes = schedule(case.seed, seconds)
    assert schedule(case.seed, seconds) == lanes
    strikes = [strike for lane in lanes for strike in lane]
    load = trial.load()
    problems = rage(rig, lanes)
    load.stop()
    rig.restore()
    history = trial.verdict(allowed=BROKER_LINES)

    counted = Counter(strike.name for strike in strikes)
    case.note(f"seed {case.seed}, {seconds:.0f} s, {len(strikes)} faults: {dict(counted)}")
    case.note(
        f"{len(history.facts('ok'))} OK, {len(history.facts('unknown'))} unknown,"
        f" {len(history.facts('gave_up'))} given up"
    )
    assert not problems
    assert not history.facts("gave_up")
