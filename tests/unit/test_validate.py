"""What the worker accepts as an event, and in which words it says no."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from eventstore.values import EventKey, EventStatus, Finished, PendingEvent
from worker.pipeline import MAX_DEPTH, MAX_ERROR, MAX_PAYLOAD_BYTES, process

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
KEY = EventKey("11111111-1111-5111-8111-111111111111", "01980000-0000-7000-8000-000000000001")


def verdict(payload: str, *, type_: str = "page.viewed") -> Finished:
    event = PendingEvent(KEY, type_, payload, 0, "alice@example.org")
    return process(event, now=NOW, enrichers=())


def payload_of(size: int) -> str:
    """A payload that is exactly so many bytes of compact JSON."""
    return json.dumps({"text": "x" * (size - len('{"text":""}'))}, separators=(",", ":"))


def nested(levels: int, *, lists: bool = False) -> str:
    inner: Any = 1
    for _ in range(levels - 1):
        inner = [inner] if lists else {"a": inner}
    return json.dumps({"a": inner})


@pytest.mark.parametrize("payload", ["null", "{}", '{"a": 1}', '{"a": [1, {"b": null}]}'])
def test_an_object_or_null_is_valid(payload: str) -> None:
    found = verdict(payload)

    assert (found.status, found.error) == (EventStatus.PROCESSED, None)


@pytest.mark.parametrize(
    "payload, kind",
    [
        ("[]", "an array"),
        ("[1, 2]", "an array"),
        ('"text"', "a string"),
        ('""', "a string"),
        ("0", "a number"),
        ("1.5", "a number"),
        ("true", "a boolean"),
        ("false", "a boolean"),
    ],
)
def test_any_other_kind_of_payload_is_invalid_and_named(payload: str, kind: str) -> None:
    found = verdict(payload)

    assert found.status is EventStatus.INVALID
    assert found.properties is None
    assert found.error == f"payload must be an object or null, not {kind}"


def test_a_payload_may_take_exactly_one_mebibyte() -> None:
    assert verdict(payload_of(MAX_PAYLOAD_BYTES)).status is EventStatus.PROCESSED


def test_one_byte_more_than_a_mebibyte_is_invalid() -> None:
    found = verdict(payload_of(MAX_PAYLOAD_BYTES + 1))

    assert found.status is EventStatus.INVALID
    assert found.error == f"payload is {MAX_PAYLOAD_BYTES + 1} bytes of JSON; at most 1048576"


def test_size_is_counted_in_bytes_of_utf8_and_not_in_characters() -> None:
    euro = json.dumps({"text": "€" * (MAX_PAYLOAD_BYTES // 3)}, ensure_ascii=False)

    assert len(euro) < MAX_PAYLOAD_BYTES
    assert verdict(euro).status is EventStatus.INVALID


def test_blanks_that_the_database_added_do_not_count() -> None:
    """PostgreSQL stores JSONB and writes `, ` and `: `."""
    pairs = {f"k{number:06d}": 1 for number in range(80_000)}
    compact = json.dumps(pairs, separators=(",", ":"))
    spaced = json.dumps(pairs)

    assert len(compact) < MAX_PAYLOAD_BYTES < len(spaced)
    assert verdict(spaced).status is EventStatus.PROCESSED


@pytest.mark.parametrize("lists", [False, True])
def test_ten_levels_are_valid_and_eleven_are_not(lists: bool) -> None:
    assert verdict(nested(MAX_DEPTH, lists=lists)).status is EventStatus.PROCESSED
    assert verdict(nested(MAX_DEPTH + 1, lists=lists)).error == (
        "payload is nested deeper than 10 levels"
    )


def test_width_is_not_depth() -> None:
    wide = {f"k{number}": {"brackets": "[[[[[[[[[[[[[[{{{{{{"} for number in range(100)}

    assert verdict(json.dumps(wide)).status is EventStatus.PROCESSED


def test_an_event_without_a_type_is_invalid() -> None:
    assert verdict("{}", type_="").error == "type is required"


def test_every_reason_fits_its_column() -> None:
    payloads = ["[]", "1" * 300, nested(60), payload_of(MAX_PAYLOAD_BYTES + 1)]

    assert all(0 < len(verdict(payload).error or "") <= MAX_ERROR for payload in payloads)
