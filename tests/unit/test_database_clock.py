"""The database's time as a process remembers it."""

import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any

import pytest

from eventstore.clock import DatabaseClock
from eventstore.errors import TransientStorageError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Database:
    """Tells a time that runs with the machine's, `ahead` by so much, after `seconds` of travel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine = 1_000.0
        self.ahead = 500.0
        self.there = self.back = 0.0
        monkeypatch.setattr("time.monotonic", lambda: self.machine)

    def execute(self, _statement: object) -> Any:
        self.machine += self.there
        self.told = _EPOCH + timedelta(seconds=self.machine + self.ahead)
        self.machine += self.back
        return self

    def scalar_one(self) -> datetime:
        return self.told


def _error(database: _Database, measured: DatabaseClock) -> float:
    true = _EPOCH + timedelta(seconds=database.machine + database.ahead)
    return abs((measured.now() - true).total_seconds())


def test_before_the_database_was_asked_no_time_is_told() -> None:
    with pytest.raises(TransientStorageError):
        DatabaseClock().now()


def test_who_asks_while_the_first_answer_is_taken_in_is_told_no_other_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another thread may do so between any two lines."""
    database, measured = _Database(monkeypatch), DatabaseClock()
    database.there = database.back = 0.001
    errors: list[float] = []

    def ask(_frame: FrameType, _event: str, _arg: object) -> Any:
        with suppress(TransientStorageError):
            errors.append(_error(database, measured))
        return ask

    def trace(frame: FrameType, _event: str, _arg: object) -> Any:
        return ask if frame.f_code is DatabaseClock.synchronise.__code__ else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        measured.synchronise(database)  # type: ignore[arg-type]
    finally:
        sys.settrace(before)

    assert errors
    assert max(errors) < 0.002


def test_a_slow_round_trip_does_not_replace_a_quick_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that stalled on the way back would otherwise move received_at by seconds."""
    database, measured = _Database(monkeypatch), DatabaseClock()
    database.there = database.back = 0.001
    measured.synchronise(database)  # type: ignore[arg-type]
    database.machine += 10
    database.back = 5.0
    measured.synchronise(database)  # type: ignore[arg-type]

    assert _error(database, measured) < 0.002
    assert not measured.stale


def test_a_step_of_the_database_clock_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody set its time: the next quick round trip tells."""
    database, measured = _Database(monkeypatch), DatabaseClock()
    database.there = database.back = 0.001
    measured.synchronise(database)  # type: ignore[arg-type]
    database.machine += 10
    database.ahead += 60
    measured.synchronise(database)  # type: ignore[arg-type]

    assert _error(database, measured) < 0.002


@pytest.mark.parametrize("ahead", [3_600.0, -3_600.0])
def test_a_step_is_followed_over_a_slower_line_as_well(
    monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    """Another database has taken over, further away, and its clock is another one."""
    database, measured = _Database(monkeypatch), DatabaseClock()
    database.there = database.back = 0.0001
    measured.synchronise(database)  # type: ignore[arg-type]
    database.machine += 10
    database.ahead += ahead
    database.there = database.back = 0.1
    measured.synchronise(database)  # type: ignore[arg-type]

    assert _error(database, measured) < 0.2
