"""When a failed event is tried again: exponentially later, spread out, and not for ever."""

from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import create_engine

from eventstore.values import EventKey, EventStatus, Finished, PendingEvent, Postponed
from worker.processor import Processor

KEY = EventKey("11111111-1111-5111-8111-111111111111", "01980000-0000-7000-8000-000000000001")


def outcome(
    attempts: int, *, counted: bool = True, max_attempts: int = 100
) -> Finished | Postponed:
    """What becomes of an event that failed; `counted` says that the lease counted the attempt."""
    processor = Processor(
        create_engine("sqlite://"), enrichers=(), max_attempts=max_attempts, lease_seconds=15
    )
    event = PendingEvent(KEY, "page.viewed", "{}", attempts, "")
    return processor._failed(event, "processing failed: LookupError", counted=counted)


def delays(attempts: int) -> list[float]:
    found = [outcome(attempts) for _ in range(300)]
    return [postponed.delay for postponed in found if isinstance(postponed, Postponed)]


@pytest.mark.parametrize("attempts, longest", [(1, 2), (2, 4), (3, 8), (5, 32), (6, 60), (90, 60)])
def test_the_pause_doubles_up_to_a_minute_with_full_jitter(attempts: int, longest: float) -> None:
    found = delays(attempts)

    assert len(found) == 300
    assert all(0 <= delay <= longest for delay in found)
    assert max(found) > longest * 0.9
    assert min(found) < longest * 0.1


def test_the_first_delivery_counts_when_it_fails() -> None:
    assert isinstance(outcome(0, counted=False), Postponed)
    assert isinstance(outcome(0, counted=False, max_attempts=1), Finished)


@pytest.mark.parametrize("attempts, failed", [(4, False), (5, True), (6, True)])
def test_the_last_attempt_is_final_with_its_reason(attempts: int, failed: bool) -> None:
    found = outcome(attempts, max_attempts=5)

    if failed:
        reason = "processing failed: LookupError"
        assert found == Finished(KEY, EventStatus.FAILED, None, reason)
    else:
        assert isinstance(found, Postponed)


def enrich(_payload: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return {}


def test_building_a_processor_connects_nowhere() -> None:
    Processor(
        create_engine("postgresql+psycopg2://127.0.0.1:1/none"),
        enrichers=[enrich],
        max_attempts=1,
        lease_seconds=1,
    )
