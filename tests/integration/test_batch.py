"""Atomic batches: all of the events, or none."""

import pytest

from ingest.v1 import event_pb2
from tests.kit.caller import Caller, event, refused


def test_a_batch_is_answered_in_its_order(alice: Caller) -> None:
    receipts = alice.batch(event(f"type.{number}") for number in range(1_000))
    newest = alice.list(page_size=1_000).events

    assert [receipt.index for receipt in receipts] == list(range(1_000))
    assert [stored.event_id for stored in newest][::-1] == [one.event_id for one in receipts]
    assert [stored.type for stored in newest][::-1] == [f"type.{n}" for n in range(1_000)]


@pytest.mark.parametrize("count", [0, 1_001])
def test_a_batch_of_another_size_is_refused(alice: Caller, count: int) -> None:
    refusal = refused(alice.batch, [event()] * count)

    assert refusal.verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert set(refusal.fields) == {"events"}
    assert alice.counts() == {}


def test_one_bad_event_refuses_the_batch_and_is_named(alice: Caller) -> None:
    events = [event() for _ in range(1_000)]
    events[567] = event("page\nviewed", payload=1)
    events[800] = event(payload_json='{"a": 1e999}')

    refusal = refused(alice.batch, events)

    assert refusal.verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert set(refusal.fields) == {"events[567].type", "events[800].payload_json.a"}
    assert alice.counts() == {}


def test_a_batch_may_mix_new_events_and_duplicates(alice: Caller) -> None:
    first = alice.submit(event("one", idempotency_key="k1"))

    receipts = alice.batch([event("two"), event("one", idempotency_key="k1")])

    assert [receipt.duplicate for receipt in receipts] == [False, True]
    assert receipts[1].event_id == first.event_id
    assert receipts[1].received_at == first.received_at
    assert receipts[1].index == 1
    assert alice.counts() == {"PENDING": 2}


def test_a_batch_of_duplicates_alone_is_fine(alice: Caller) -> None:
    events = [event(f"type.{number}", idempotency_key=f"k{number}") for number in range(50)]
    first, again = alice.batch(events), alice.batch(events)

    assert all(receipt.duplicate for receipt in again)
    assert [one.event_id for one in first] == [one.event_id for one in again]


def test_a_conflict_refuses_the_batch_and_leaves_nothing(alice: Caller) -> None:
    """Neither its events nor its keys: the keys stay free for others."""
    first = alice.submit(event("one", idempotency_key="taken"))
    batch = [event("two", idempotency_key="free"), event("other", idempotency_key="taken")]

    refusal = refused(alice.batch, batch)

    assert refusal.verdict == ("ALREADY_EXISTS", "IDEMPOTENCY_CONFLICT")
    assert refusal.metadata == {"event_id": first.event_id, "index": "1"}
    assert alice.counts() == {"PENDING": 1}
    assert not alice.submit(event("three", idempotency_key="free")).duplicate


def test_a_conflict_within_a_batch_names_no_event_as_none_is_stored(alice: Caller) -> None:
    batch = [event("one", idempotency_key="k"), event("other", idempotency_key="k")]

    refusal = refused(alice.batch, batch)

    assert refusal.verdict == ("ALREADY_EXISTS", "IDEMPOTENCY_CONFLICT")
    assert refusal.metadata == {"index": "1"}
    assert alice.counts() == {}


def test_a_key_twice_in_one_batch_is_one_event(alice: Caller) -> None:
    receipts = alice.batch([event("one", idempotency_key="k"), event("one", idempotency_key="k")])

    assert [receipt.duplicate for receipt in receipts] == [False, True]
    assert receipts[0].event_id == receipts[1].event_id
    assert alice.counts() == {"PENDING": 1}


def test_a_key_twice_in_one_batch_with_other_content_refuses_it(alice: Caller) -> None:
    batch = [event("one", idempotency_key="k"), event("two", idempotency_key="k")]

    assert refused(alice.batch, batch).verdict == ("ALREADY_EXISTS", "IDEMPOTENCY_CONFLICT")
    assert alice.counts() == {}
    assert alice.submit(event("two", idempotency_key="k")).status == event_pb2.EVENT_STATUS_PENDING


def test_a_batch_as_large_as_a_message_may_be_is_stored(alice: Caller) -> None:
    events = [event(payload={"text": "x" * 400_000}) for _ in range(10)]

    assert len(alice.batch(events)) == 10
