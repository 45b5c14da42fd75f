"""How the soak judges: which growth and which bloat it complains of, and which runs it refuses."""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.soak import Minute, complaints, parse, slope

#: A minute of a run that was well.
_WELL = Minute(
    minute=1,
    events_per_s=17_000,
    accept_p50_ms=15.0,
    accept_p99_ms=140.0,
    unary_p99_ms=90.0,
    processed_p50_ms=45.0,
    processed_p99_ms=300.0,
    pending=0,
    server_mb=122.0,
    worker_mb=176.0,
    dead_percent=25.0,
    bytes_per_event=750,
    autovacuums=1,
)


def run_of(minutes: int, **last: Any) -> list[Minute]:
    """Return minutes that are well, but for what the last one has otherwise."""
    run = [replace(_WELL, minute=number) for number in range(1, minutes + 1)]
    return [*run[:-1], replace(run[-1], **last)]


def test_a_run_without_growth_is_well() -> None:
    assert complaints(run_of(30)) == []
    assert complaints(run_of(7)) == []


def test_the_slope_is_that_of_ten_minutes_after_the_warm_up() -> None:
    run = [replace(each, server_mb=100 + 0.3 * each.minute) for each in run_of(30)]
    run[0] = replace(run[0], server_mb=10)

    assert slope(run, "server_mb") == pytest.approx(3)
    assert complaints(run) == ["server_mb grows"]


@pytest.mark.parametrize(
    "last, told",
    [
        ({"dead_percent": 50.1}, "dead rows are 50.1 %"),
        ({"bytes_per_event": 1_101}, "an event takes 1101 bytes"),
        ({"pending": 17_001}, "17001 are pending"),
        ({"processed_p50_ms": -1}, "nothing was processed"),
    ],
)
def test_bloat_and_what_is_left_over_are_told(last: dict[str, Any], told: str) -> None:
    assert complaints(run_of(30, **last)) == [f"minute 30: {told}"]


def test_bloat_of_the_warm_up_is_not() -> None:
    run = run_of(30)
    assert complaints([replace(run[0], dead_percent=70, bytes_per_event=1_500), *run[1:]]) == []


@pytest.mark.parametrize("part", ["accept_p50_ms", "processed_p50_ms"])
def test_half_as_slow_again_is_told(part: str) -> None:
    run = run_of(30)
    slower = [replace(each, **{part: getattr(each, part) * 1.6}) for each in run[-5:]]
    (told,) = complaints([*run[:-5], *slower])

    assert told.startswith(f"{part} went from")


def test_a_run_that_cannot_be_judged_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """It would have no slope, and so pass."""
    with pytest.raises(ValueError, match="6 minutes; it takes 7"):
        complaints(run_of(6))
    with pytest.raises(SystemExit) as ended:
        parse(["--minutes", "6"])
    assert ended.value.code == 2
    assert "--minutes must be 7 or more" in capsys.readouterr().err
    assert parse(["--minutes", "7"]).minutes == 7
