"""The arithmetic by which the benchmark judges: searches, slopes, percentiles, targets, doubt."""

from dataclasses import dataclass
from typing import Any, cast

import pytest

from benchmarks import report
from benchmarks.corpus import corpus
from benchmarks.figure import Figure, Measured, Target
from benchmarks.figures.sustained import _search, _slope
from benchmarks.sample import Sample, percentile
from benchmarks.sent import _COMPARED, _KEYS, _TOUCHED, _TWICE, Sent


@dataclass
class Tried:
    """A rate that was tried, against what the service can keep up with."""

    rate: float
    capacity: float

    @property
    def holds(self) -> bool:
        return self.rate <= self.capacity


@pytest.mark.parametrize("capacity", [70.0, 90.0, 108.0, 125.0])
def test_the_search_closes_in_on_what_can_be_sustained(capacity: float) -> None:
    steps = _search(cast("Any", lambda rate: Tried(rate, capacity)), 100.0)
    held = [cast("Tried", step).rate for step in steps if step.holds]
    assert held
    assert 0.85 * capacity <= max(held) <= capacity


def test_the_slope_is_the_growth_of_a_second() -> None:
    across = [0.5, 1.0, 1.5, 2.0]
    assert _slope(across, [10, 20, 30, 40]) == pytest.approx(20)
    assert _slope(across, [7, 7, 7, 7]) == pytest.approx(0)
    assert _slope(across, [40, 30, 20, 10]) == pytest.approx(-20)


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(200, 0, -1)]
    assert [percentile(values, p) for p in (50, 95, 99, 100)] == [100, 190, 198, 200]
    assert percentile([3.0], 99) == 3.0


@pytest.mark.parametrize(
    "target, met, missed",
    [
        (Target(least_ratio=0.8), 80, 79),
        (Target(most_ratio=1.2), 120, 121),
        (Target(most_above=0.3), 100.3, 100.4),
        (Target(least=50), 50, 49),
        (Target(most=50), 50, 51),
    ],
)
def test_a_target_is_met_up_to_its_bound(target: Target, met: float, missed: float) -> None:
    assert target.is_met(met, 100)
    assert not target.is_met(missed, 100)
    assert target.is_met(met, None) is not target.needs_limit


def measured(name: str, value: float, *, busy: float = 0, **figure: Any) -> Measured:
    return Measured(
        figure=Figure(name=name, unit="events/s", **figure),
        samples=[Sample(value=value)],
        busy_during=[busy],
    )


@pytest.mark.parametrize(
    "busy, limit_busy, met", [(0, 0, "yes"), (11, 0, "?"), (0, 11, "?"), (10, 10, "yes")]
)
def test_nobody_knows_whether_a_target_is_met_amid_noise(
    busy: float, limit_busy: float, met: str
) -> None:
    figure = measured("a", 90, busy=busy, limits=("b",), target=Target(least_ratio=0.8))
    detail = Measured(
        figure=Figure(name="c", unit="MB", of=("a", "mb"), target=Target(most=9)),
        samples=[Sample(value=1)],
    )
    found = report.lines({"a": figure, "b": measured("b", 100, busy=limit_busy), "c": detail})
    rows = [line.split("|")[-2].strip() for line in report.table(found).splitlines()[2:]]
    assert rows == [met, "", "?" if busy > 10 or limit_busy > 10 else "yes"]


def test_nothing_is_said_of_lost_events_where_none_were_looked_for() -> None:
    one = measured("fsync", 1)
    assert report.correctness(report.lines({"fsync": one})) == "correctness: nothing was checked"
    one.samples.append(Sample(value=1, faults=()))
    assert "lost 0" in report.correctness(report.lines({"fsync": one}))
    one.samples.append(Sample(value=1, faults=("lost or refused: 1",)))
    assert "fsync: lost or refused: 1" in report.correctness(report.lines({"fsync": one}))


@dataclass
class Stored:
    """A database as the check of what was sent sees it."""

    rows: int = 0
    compared: tuple[int, int] = (0, 0)
    keys: tuple[int, int] = (0, 0)
    twice: int = 0
    touched: int = 0

    def faults(self, acknowledged: int, *, processed: bool) -> tuple[str, ...]:
        del processed
        return () if self.rows == acknowledged else (f"rows {self.rows} of {acknowledged}",)

    def query(self, statement: str, _values: object = ()) -> list[Any]:
        answers = {
            _COMPARED: self.compared,
            _TWICE: (self.twice,),
            _KEYS: self.keys,
            _TOUCHED: (self.touched,),
        }
        return [answers[statement]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": 29},
        {"compared": (1, 0)},
        {"compared": (0, 1)},
        {"keys": (9, 9)},
        {"keys": (10, 9)},
        {"twice": 1},
        {"touched": 1},
    ],
)
def test_each_thing_that_is_not_as_sent_is_a_fault(wrong: dict[str, Any]) -> None:
    sent, small = Sent(), corpus("small")
    sent.note(small, 5, times=4)
    sent.note(small, 10, keyed=True)
    good: dict[str, Any] = {"rows": 30, "keys": (10, 10)}
    assert sent.faults(cast("Any", Stored(**good))) == ()
    assert len(sent.faults(cast("Any", Stored(**{**good, **wrong})))) == 1
