"""Today, for tests of daily partitions: as it is when they run, and the same until they end."""

from datetime import UTC, datetime, timedelta

import pytest

from tests.kit.waiting import eventually

#: What a test of partitions takes at most, however busy the machine.
_LONGEST = timedelta(seconds=30)


def now() -> datetime:
    return datetime.now(UTC)


def day(offset: int = 0) -> str:
    """Return a day as partitions are named by it, such as 20260131."""
    return f"{now() + timedelta(days=offset):%Y%m%d}"


@pytest.fixture
def one_day() -> None:
    """Wait for midnight (UTC) when it is near: the test begins and ends on the same day."""
    begun = day()
    if f"{now() + _LONGEST:%Y%m%d}" != begun:
        eventually(lambda: day() != begun, timeout=2 * _LONGEST.total_seconds())
