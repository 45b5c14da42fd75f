"""One event in, one receipt out, and the event is there."""

import json
import time
from uuid import UUID

import pytest
from google.protobuf.struct_pb2 import Struct

from ingest.v1 import event_pb2
from ingest.v1.ingest_service_pb2 import SubmitEventRequest
from tests.kit.caller import Caller, at, event, refused
from tests.kit.server import Service


def test_a_receipt_names_a_stored_event(alice: Caller) -> None:
    before = time.time()
    receipt = alice.submit(event("page.viewed", source="shop", payload={"page": "/"}))
    stored = alice.get(receipt.event_id)

    assert UUID(receipt.event_id).version == 7
    assert not receipt.duplicate
    assert receipt.index == 0
    assert receipt.status == event_pb2.EVENT_STATUS_PENDING
    assert before - 2 < receipt.received_at.ToMicroseconds() / 1e6 < time.time() + 2
    assert stored.event_id == receipt.event_id
    assert stored.received_at == receipt.received_at
    assert (stored.type, stored.source) == ("page.viewed", "shop")


def test_every_field_comes_back_as_it_was_sent(alice: Caller) -> None:
    sent = event(
        "order.paid",
        source="billing",
        subject="order/4711",
        idempotency_key="key-1",
        occurred_at=at(1_700_000_000.123456),
        attributes={"session_id": "s", "ip": "192.0.2.1", "empty": "", "ütf": "☃"},
        payload={"total": 12.5, "items": [1, None, True, {"sku": "ä"}]},
    )
    receipt = alice.submit(sent)
    stored = alice.get(receipt.event_id)

    assert (stored.type, stored.source, stored.subject) == (sent.type, sent.source, sent.subject)
    assert stored.idempotency_key == "key-1"
    assert stored.occurred_at == sent.occurred_at
    assert stored.attributes == sent.attributes
    assert stored.payload["total"] == 12.5
    assert stored.user.subject == alice.subject
    assert stored.user.email == f"{alice.subject}@example.org"
    assert UUID(stored.user.id).version == 5


def test_an_event_that_says_only_its_type_is_enough(alice: Caller) -> None:
    stored = alice.get(alice.submit(event("ping")).event_id)

    assert stored.WhichOneof("body") is None
    assert stored.occurred_at == stored.received_at
    assert not stored.attributes
    assert not stored.idempotency_key


def test_a_new_event_is_pending_and_was_not_attempted(alice: Caller) -> None:
    stored = alice.get(alice.submit(event()).event_id)

    assert stored.status == event_pb2.EVENT_STATUS_PENDING
    assert not stored.processed
    assert not stored.HasField("processed_at")
    assert stored.WhichOneof("enrichment") is None
    assert stored.attempts == 0
    assert stored.processing_error == ""


def test_integral_doubles_of_a_struct_become_integers_again(alice: Caller) -> None:
    struct = Struct()
    struct.update({"count": 3.0, "ratio": 0.5, "exact": float(2**53), "big": 1e300})
    receipt = alice.submit(event_pb2.EventInput(type="page.viewed", payload=struct))

    text = alice.get(receipt.event_id, payload_format=event_pb2.PAYLOAD_FORMAT_JSON).payload_json

    stored = json.loads(text)
    assert stored == {"count": 3, "ratio": 0.5, "exact": 2**53, "big": 1e300}
    assert [type(stored[name]) for name in ("count", "exact")] == [int, int]


@pytest.mark.parametrize("payload", [[1, 2], "text", 7, True, None, []])
def test_a_payload_of_another_kind_is_stored_for_the_worker_to_judge(
    alice: Caller, payload: object
) -> None:
    receipt = alice.submit(event(payload=payload))

    assert alice.get(receipt.event_id).event_id == receipt.event_id


def test_a_request_without_an_event_is_refused(alice: Caller) -> None:
    refusal = refused(alice.stub.SubmitEvent, SubmitEventRequest(), metadata=alice.metadata)

    assert refusal.verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert set(refusal.fields) == {"event"}


def test_every_violation_of_an_event_is_named_at_once(alice: Caller) -> None:
    bad = event("", source="a\nb", subject="x" * 256, occurred_at=at(253402300799), payload=1)
    bad.payload_json = "{"

    refusal = refused(alice.submit, bad)

    assert refusal.verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert set(refusal.fields) == {
        *("event.type", "event.source", "event.subject", "event.occurred_at"),
        "event.payload_json",
    }


def test_a_refused_event_leaves_nothing(alice: Caller) -> None:
    refused(alice.submit, event("", idempotency_key="key-1"))

    assert alice.counts() == {}
    assert refused(alice.get, idempotency_key="key-1").reason == "EVENT_NOT_FOUND"
    assert not alice.submit(event(idempotency_key="key-1")).duplicate


def test_an_address_that_changes_is_taken_over_and_one_that_is_missing_is_not(
    service: Service, alice: Caller
) -> None:
    """Users register themselves by their first event; a token without e-mail erases nothing."""
    receipt = alice.submit(event())
    service.caller(alice.subject, email="new@example.org").submit(event())
    assert alice.get(receipt.event_id).user.email == "new@example.org"

    service.caller(alice.subject, email=None).submit(event())
    assert alice.get(receipt.event_id).user.email == "new@example.org"
