"""The largest events that can be stored are read back by a client that takes 4 MiB."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from ingest.v1 import event_pb2
from ingest.v1.event_pb2 import EventInput
from ingest_service.decode import (
    MAX_ATTRIBUTE_BYTES,
    MAX_ATTRIBUTE_KEY_BYTES,
    MAX_ATTRIBUTES,
    MAX_EVENT_BYTES,
)
from tests.kit.caller import Caller, event
from tests.kit.server import Service
from worker.pipeline import MAX_PAYLOAD_BYTES
from worker.properties import MAX_PROPERTIES_BYTES

FORMATS = (event_pb2.PAYLOAD_FORMAT_STRUCT, event_pb2.PAYLOAD_FORMAT_JSON)
#: Somewhat fewer values than a Struct may have here, so that it is one.
MANY = 49_900
#: Bytes of what normalising adds beside `page`, and more.
SPARE = 400
ATTRIBUTES = {
    f"k{number:02}".ljust(MAX_ATTRIBUTE_KEY_BYTES, "k"): "v" * MAX_ATTRIBUTE_BYTES
    for number in range(MAX_ATTRIBUTES)
}


def size_of(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":")))


def objects(values: int) -> list[dict[str, int]]:
    """Return so many numbers in objects, which grow most as a Struct."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return [dict.fromkeys(letters, 1)] * (values // (len(letters) + 1))


SMALL_VALUES: dict[str, Callable[[], list[Any]]] = {
    "none": list,
    "numbers": lambda: [1] * MANY,
    "half as many": lambda: [1] * (MANY // 2),
    "numbers in objects": lambda: objects(MANY),
    "too many for a Struct": lambda: [1] * 99_990,
}


def largest(most: int, values: list[Any], key: str) -> EventInput:
    """Return an event with all that may be: small values, and the rest as one text."""
    payload: dict[str, Any] = {"a": values, key: ""}
    payload[key] = "x" * (most - size_of(payload))
    made = event(payload=payload, attributes=ATTRIBUTES)
    made.payload_json = json.dumps(payload, separators=(",", ":"))
    return made


@pytest.mark.parametrize("name", SMALL_VALUES)
@pytest.mark.parametrize("key", ["page", "other"])
def test_the_largest_event_with_the_most_that_enrichers_may_add_can_be_read(
    service: Service, name: str, key: str
) -> None:
    alice = service.caller()
    wanted = largest(MAX_PAYLOAD_BYTES, SMALL_VALUES[name](), key)
    page = len(json.loads(wanted.payload_json)[key]) if key == "page" else 0
    receipt = alice.submit(wanted)

    added = "y" * (MAX_PROPERTIES_BYTES - page - SPARE)
    service.process_all(alice, lambda _payload: {"added": added})

    stored = read(alice, receipt.event_id)
    assert stored.status == event_pb2.EVENT_STATUS_PROCESSED, stored.processing_error


@pytest.mark.parametrize("name", SMALL_VALUES)
def test_the_largest_event_that_is_invalid_can_be_read(service: Service, name: str) -> None:
    alice = service.caller()
    most = MAX_EVENT_BYTES - size_of(ATTRIBUTES)
    receipt = alice.submit(largest(most, SMALL_VALUES[name](), "text"))

    service.process_all(alice)

    stored = read(alice, receipt.event_id)
    assert stored.status == event_pb2.EVENT_STATUS_INVALID


def read(alice: Caller, event_id: str) -> event_pb2.Event:
    """Read an event in every way that there is; the client takes 4 MiB."""
    found = [alice.get(event_id, payload_format=form) for form in FORMATS]
    listed = [alice.list(payload_format=form).events for form in FORMATS]
    assert [list(events) for events in listed] == [[stored] for stored in found]
    return found[0]


def test_a_page_of_events_with_many_small_values_can_be_read(service: Service) -> None:
    """As Structs they take five times as much as in the database."""
    alice = service.caller()
    alice.stream([[event(payload={"a": [1] * MANY})]] * 12)
    fresh = sum(len(page.events) for page in alice.pages())
    service.process_all(alice)

    assert (fresh, sum(len(page.events) for page in alice.pages())) == (12, 12)
