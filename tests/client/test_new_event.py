"""Events from plain Python values."""

import time
from datetime import datetime, timedelta, timezone
from uuid import RFC_4122, UUID

import pytest

from ingest.errors import InvalidEvent
from ingest.events import new_event
from ingest.v1.event_pb2 import EventInput


def test_every_field_is_filled() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, timezone(timedelta(hours=2)))
    event = new_event(
        "page.viewed",
        {"n": 2**60, "text": "ä"},
        source="web",
        subject="page",
        idempotency_key="k",
        occurred_at=moment,
        attributes={"ip": "::1"},
    )
    assert event == EventInput(
        type="page.viewed",
        source="web",
        subject="page",
        idempotency_key="k",
        occurred_at=event.occurred_at,
        payload_json='{"n":1152921504606846976,"text":"ä"}',
        attributes={"ip": "::1"},
    )
    assert event.occurred_at.ToJsonString() == "2026-01-02T01:04:05.678901Z"


def test_a_missing_key_is_made_up() -> None:
    before = time.time_ns() // 1_000_000
    keys = [new_event("a").idempotency_key for _ in range(1_000)]
    after = time.time_ns() // 1_000_000

    assert len({*keys}) == len(keys)
    made = [UUID(key) for key in keys]
    assert {(key.version, key.variant) for key in made} == {(7, RFC_4122)}
    times = [key.int >> 80 for key in made]
    assert before <= times[0]
    assert times == sorted(times)
    assert times[-1] <= after


def test_json_text_is_sent_as_it_stands() -> None:
    text = '{"n": 1.0000000000000000001e2}'
    assert new_event("a", payload_json=text).payload_json == text


def test_there_is_one_payload() -> None:
    with pytest.raises(TypeError):
        new_event("a", {}, payload_json="{}")


@pytest.mark.parametrize(
    "payload", [float("nan"), float("-inf"), {"a": object()}, {(1, 2): 3}, "\ud800"]
)
def test_what_is_no_json_is_refused(payload: object) -> None:
    with pytest.raises(InvalidEvent) as caught:
        new_event("a", payload)
    assert caught.value.reason == "FIELD_INVALID"


def test_a_payload_that_holds_itself_is_refused() -> None:
    payload: list[object] = []
    payload.append(payload)
    with pytest.raises(InvalidEvent):
        new_event("a", payload)


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(InvalidEvent, match="occurred_at: must have a time zone"):
        new_event("a", occurred_at=datetime(2026, 1, 1))  # noqa: DTZ001  # the point of the test
