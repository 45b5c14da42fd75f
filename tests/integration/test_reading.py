"""GetEvent: what became of an event, in the form that was asked for, and only to its owner."""

import json
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf import json_format

from ingest.v1 import event_pb2
from tests.kit.caller import Caller, at, event, refused
from tests.kit.rows import offer
from tests.kit.server import Service, closing_engine, keys_of
from worker.processor import Processor

STRUCT = event_pb2.PAYLOAD_FORMAT_STRUCT
JSON = event_pb2.PAYLOAD_FORMAT_JSON
NONE = event_pb2.PAYLOAD_FORMAT_NONE


def test_a_processed_event_shows_everything(service: Service, alice: Caller) -> None:
    payload = {"page": " /home ", "duration": "3.5", "extra": {"deep": [1, 2]}}
    receipt = alice.submit(event(payload=payload))
    service.process_all(alice)
    stored = alice.get(receipt.event_id)

    assert stored.status == event_pb2.EVENT_STATUS_PROCESSED
    assert stored.processed
    assert stored.processed_at.ToMicroseconds() >= stored.received_at.ToMicroseconds() - 1_000_000
    assert stored.attempts == 0
    assert stored.processing_error == ""
    assert stored.payload["page"] == " /home "
    properties = json_format.MessageToDict(stored.properties)
    assert properties["page"] == "/home"
    assert properties["duration"] == 3.5
    assert properties["original"]["extra"]["deep"][1] == 2
    assert properties["user"]["email"] == f"{alice.subject}@example.org"
    assert str(properties["normalized_at"]).endswith("Z")


def test_an_invalid_event_says_why_and_keeps_its_payload(service: Service, alice: Caller) -> None:
    receipt = alice.submit(event(payload=[1, 2]))
    service.process_all(alice)
    stored = alice.get(receipt.event_id)

    assert stored.status == event_pb2.EVENT_STATUS_INVALID
    assert not stored.processed
    assert stored.HasField("processed_at")
    assert stored.processing_error == "payload must be an object or null, not an array"
    assert stored.WhichOneof("enrichment") is None
    assert stored.payload_json == "[1,2]"


def broken(_payload: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """An enricher that can bear nothing."""
    raise LookupError("canary text of an exception")


def test_a_failed_event_shows_its_attempts_and_why_and_keeps_its_payload(
    service: Service, alice: Caller
) -> None:
    receipt = alice.submit(event(payload={"a": 1}))
    with closing_engine(service.database_url) as engine:
        keys = keys_of(engine, alice.subject)
        processor = Processor(engine, enrichers=[broken], max_attempts=2, lease_seconds=15)
        processor.first_delivery(keys)
        waiting = alice.get(receipt.event_id)
        offer(engine, keys)
        processor.recover(keys, attempts=1)
    stored = alice.get(receipt.event_id)

    assert (waiting.status, waiting.attempts) == (event_pb2.EVENT_STATUS_PENDING, 1)
    assert not waiting.HasField("processed_at")
    assert (stored.status, stored.attempts) == (event_pb2.EVENT_STATUS_FAILED, 2)
    assert not stored.processed
    assert stored.HasField("processed_at")
    assert stored.processing_error == "processing failed: LookupError"
    assert stored.WhichOneof("enrichment") is None
    assert json_format.MessageToDict(stored.payload) == {"a": 1}
    assert list(alice.list(status=event_pb2.EVENT_STATUS_FAILED).events) == [stored]
    assert alice.counts() == {"FAILED": 1}


def test_an_event_is_found_by_its_key_as_by_its_id(alice: Caller) -> None:
    receipt = alice.submit(event(idempotency_key="order/4711"))

    assert alice.get(idempotency_key="order/4711") == alice.get(receipt.event_id)


def test_an_id_may_be_written_in_capitals(alice: Caller) -> None:
    receipt = alice.submit(event())

    assert alice.get(receipt.event_id.upper()).event_id == receipt.event_id


@pytest.mark.parametrize(
    "asked, body, enrichment",
    [
        (0, "payload", "properties"),
        (STRUCT, "payload", "properties"),
        (JSON, "payload_json", "properties_json"),
        (NONE, None, None),
    ],
)
def test_content_comes_in_the_form_that_was_asked_for(
    service: Service, alice: Caller, asked: int, body: str | None, enrichment: str | None
) -> None:
    receipt = alice.submit(event(payload={"a": 1}))
    service.process_all(alice)
    stored = alice.get(receipt.event_id, payload_format=asked)

    assert stored.WhichOneof("body") == body
    assert stored.WhichOneof("enrichment") == enrichment
    assert stored.status == event_pb2.EVENT_STATUS_PROCESSED


def nested(levels: int) -> dict[str, object]:
    return {"a": nested(levels - 1)} if levels else {}


@pytest.mark.parametrize(
    "payload",
    [[1], "text", 5, False, nested(30), {"n": 2**53 + 1}, {"a": [{"n": -(2**60)}]}],
    ids=lambda value: str(value)[:20],
)
def test_what_a_struct_cannot_carry_exactly_comes_as_json(alice: Caller, payload: object) -> None:
    receipt = alice.submit(event(payload=payload))
    stored = alice.get(receipt.event_id, payload_format=STRUCT)

    assert stored.WhichOneof("body") == "payload_json"
    assert json.loads(stored.payload_json) == payload


@pytest.mark.parametrize("payload", [{}, {"n": 2**53}, {"": {"__proto__": []}}, nested(15)])
def test_what_a_struct_can_carry_comes_as_struct(alice: Caller, payload: object) -> None:
    receipt = alice.submit(event(payload=payload))

    assert alice.get(receipt.event_id).WhichOneof("body") == "payload"


def test_the_original_of_a_large_integer_is_exact_too(service: Service, alice: Caller) -> None:
    payload = {"n": 2**63 + 1, "page": " /x "}
    receipt = alice.submit(event(payload=payload))
    service.process_all(alice)
    stored = alice.get(receipt.event_id)

    assert stored.WhichOneof("enrichment") == "properties_json"
    assert json.loads(stored.properties_json)["original"] == payload


def test_a_null_payload_is_none_as_struct_and_null_as_json(service: Service, alice: Caller) -> None:
    receipt = alice.submit(event(payload=None))
    service.process_all(alice)

    assert alice.get(receipt.event_id).WhichOneof("body") is None
    assert alice.get(receipt.event_id, payload_format=JSON).payload_json == "null"
    assert (
        json.loads(alice.get(receipt.event_id, payload_format=JSON).properties_json)["original"]
        is None
    )


def test_another_users_event_looks_exactly_like_none(alice: Caller, bob: Caller) -> None:
    """Byte for byte, by id and by key, so that nobody learns what exists."""
    theirs = bob.submit(event(idempotency_key="secret"))

    by_id = refused(alice.get, theirs.event_id)
    by_key = refused(alice.get, idempotency_key="secret")

    assert by_id.verdict == ("NOT_FOUND", "EVENT_NOT_FOUND")
    assert by_id == refused(alice.get, str(uuid4())) == by_key
    assert by_key == refused(alice.get, idempotency_key="no such key")
    assert by_id.wire
    assert bob.get(theirs.event_id).event_id == theirs.event_id


@pytest.mark.parametrize(
    "event_id",
    [
        *("x", "1", "0" * 36, "01980000-0000-7000-8000-00000000000", "' OR 1=1 --", "\x00"),
        *("{01980000-0000-7000-8000-000000000001}", "01980000000070008000000000000001"),
        *("01980000-0000-7000-8000-000000000001 ", "../../../../etc/passwd", "é" * 36, "9" * 9000),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_what_is_no_id_is_refused(alice: Caller, event_id: str) -> None:
    refusal = refused(alice.get, event_id)

    assert refusal.verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert set(refusal.fields) == {"event_id"}


@pytest.mark.parametrize(
    "fields, path",
    [
        ({}, "lookup"),
        ({"idempotency_key": ""}, "idempotency_key"),
        ({"idempotency_key": "x" * 256}, "idempotency_key"),
        ({"idempotency_key": "a\0b"}, "idempotency_key"),
        ({"idempotency_key": "k", "payload_format": 9}, "payload_format"),
        ({"idempotency_key": "k", "payload_format": -1}, "payload_format"),
    ],
    ids=str,
)
def test_a_question_that_cannot_be_answered_is_refused(
    alice: Caller, fields: dict[str, object], path: str
) -> None:
    refusal = refused(alice.get, **fields)

    assert refusal.verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert set(refusal.fields) == {path}


def test_microseconds_of_every_time_are_kept(alice: Caller) -> None:
    receipt = alice.submit(event(occurred_at=at(-62_135_596_800)))

    assert alice.get(receipt.event_id).occurred_at == at(-62_135_596_800)
