"""ListEvents and GetEventCounts: the caller's own events, filtered, paged, counted."""

import base64
import json
import os
import time
from datetime import UTC, timedelta
from itertools import islice

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Engine, update

from eventstore import reading
from eventstore.schema import events
from eventstore.values import MOST_AHEAD_MS, EventStatus
from ingest.v1 import event_pb2
from ingest.v1.ingest_service_pb2 import GetEventCountsRequest
from ingest_service.decode import MAX_EVENT_BYTES
from tests.kit.caller import Caller, at, event, refused
from tests.kit.rows import ALICE, add, new_user
from tests.kit.server import Service, closing_engine

NONE = event_pb2.PAYLOAD_FORMAT_NONE


def types(caller: Caller, **fields: object) -> list[str]:
    return [one.type for page in caller.pages(**fields) for one in page.events]


def test_events_come_newest_first_and_only_ones_own(alice: Caller, bob: Caller) -> None:
    alice.batch(event(f"mine.{number}") for number in range(3))
    bob.submit(event("theirs"))

    assert types(alice) == ["mine.2", "mine.1", "mine.0"]
    assert types(bob) == ["theirs"]
    assert bob.counts() == {"PENDING": 1}


def test_without_events_there_is_one_empty_page(alice: Caller) -> None:
    page = alice.list()

    assert not page.events
    assert not page.next_page_token
    assert alice.counts() == {}


@pytest.mark.parametrize("page_size, pages", [(1, 7), (3, 3), (7, 1), (1_000, 1), (0, 1)])
def test_pages_together_hold_each_event_once(alice: Caller, page_size: int, pages: int) -> None:
    alice.batch(event(f"t{number}") for number in range(7))
    found = list(alice.pages(page_size=page_size))

    assert len(found) == pages
    listed = [one.type for page in found for one in page.events]
    assert listed == [f"t{number}" for number in range(6, -1, -1)]


def test_a_page_holds_fifty_events_unless_told_otherwise(alice: Caller) -> None:
    alice.batch(event() for _ in range(60))

    assert len(alice.list().events) == 50


@pytest.mark.parametrize("letter", ["a", "\u5b57", "\U0001f600"], ids=["ASCII", "CJK", "emoji"])
def test_pages_of_long_texts_are_read_in_any_alphabet(alice: Caller, letter: str) -> None:
    """Their bytes are up to four times their characters, by which a page is bounded."""
    for _ in range(3):
        alice.batch(event(payload={"text": letter * 19_000}) for _ in range(17))

    pages = list(alice.pages(page_size=50))

    assert sum(len(page.events) for page in pages) == 51


def test_events_that_come_meanwhile_do_not_shift_the_pages(alice: Caller) -> None:
    alice.batch(event(f"old.{number}") for number in range(4))
    first = alice.list(page_size=2)
    alice.submit(event("new"))
    second = alice.list(page_size=2, page_token=first.next_page_token)

    assert [one.type for one in second.events] == ["old.1", "old.0"]


def test_filters_choose_by_type_source_and_status(service: Service, alice: Caller) -> None:
    alice.batch([event("a", source="x"), event("b", source="x"), event("b", payload=[])])
    service.process_all(alice)
    alice.submit(event("b", source="x"))

    assert types(alice, type="b") == ["b", "b", "b"]
    assert types(alice, source="x", type="b") == ["b", "b"]
    assert types(alice, type="b", source="none") == []
    assert types(alice, status=event_pb2.EVENT_STATUS_PENDING) == ["b"]
    assert types(alice, status=event_pb2.EVENT_STATUS_INVALID) == ["b"]
    assert types(alice, status=event_pb2.EVENT_STATUS_PROCESSED) == ["b", "a"]
    assert types(alice, status=event_pb2.EVENT_STATUS_FAILED) == []
    assert alice.counts() == {"PENDING": 1, "PROCESSED": 2, "INVALID": 1}


def test_a_filter_that_matches_seldom_is_paged_too(alice: Caller) -> None:
    alice.batch(event("rare" if number % 100 == 0 else "common") for number in range(1_000))

    assert len(types(alice, type="rare", page_size=3)) == 10


def test_every_status_is_counted_even_when_it_is_zero(alice: Caller) -> None:
    answer = alice.stub.GetEventCounts(GetEventCountsRequest(), metadata=alice.metadata)

    assert [(entry.status, entry.count) for entry in answer.counts] == [(n, 0) for n in range(1, 5)]
    assert not answer.truncated


def test_pending_events_older_than_what_is_counted_are_counted_too_and_only_ones_own(
    store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.reading.COUNT_ROWS", 3)
    mine = add(store, *[{}] * 7)
    add(store, *[{}] * 4, user=new_user())
    final = events.c.id.in_([key.id for key in mine[:2]])
    with store.begin() as connection:
        connection.execute(update(events).where(final).values(status=EventStatus.PROCESSED))
        counts, is_truncated = reading.count_events(connection, ALICE.id, reading.Filters())

    assert is_truncated
    assert counts[EventStatus.PENDING] == 5


def just_after(moment: Timestamp) -> Timestamp:
    return at((moment.ToMicroseconds() + 1) / 1e6)


def test_time_bounds_include_their_start_and_exclude_their_end(alice: Caller) -> None:
    first = alice.submit(event("first")).received_at
    later = first
    while later.ToMicroseconds() <= first.ToMicroseconds():
        later = alice.submit(event("later")).received_at

    assert types(alice, received_before=first) == []
    assert types(alice, received_before=just_after(first)) == ["first"]
    assert "first" in types(alice, received_after=first)
    assert "first" not in types(alice, received_after=just_after(first))
    assert types(alice, received_after=first, received_before=later)[-1] == "first"
    assert alice.counts(received_before=just_after(first)) == {"PENDING": 1}


def test_an_event_whose_id_is_ahead_of_its_receipt_is_in_the_window_of_its_receipt(
    service: Service, alice: Caller
) -> None:
    """Ids keep their order when the database's clock is corrected by up to a second."""
    receipt = alice.submit(event())
    received_at = receipt.received_at.ToDatetime(UTC) - timedelta(milliseconds=MOST_AHEAD_MS)
    with closing_engine(service.database_url) as engine, engine.begin() as connection:
        row = events.c.id == receipt.event_id
        connection.execute(update(events).where(row).values(received_at=received_at))
    window = {
        "received_after": at(received_at.timestamp() - 0.001),
        "received_before": at(received_at.timestamp() + 0.001),
    }

    assert len(types(alice, **window)) == 1
    assert alice.counts(**window) == {"PENDING": 1}


@pytest.mark.parametrize("edge", [-62_135_596_800, 0, 253_402_300_799])
def test_bounds_at_the_end_of_time_are_fine(alice: Caller, edge: int) -> None:
    alice.submit(event())
    is_past = edge <= 0

    assert len(types(alice, received_after=at(edge))) == is_past
    assert len(types(alice, received_before=at(edge))) == (not is_past)
    assert alice.counts(received_after=at(edge)) == ({"PENDING": 1} if is_past else {})


@pytest.mark.parametrize(
    "fields, paths",
    [
        ({"page_size": -1}, ["page_size"]),
        ({"page_size": 1_001}, ["page_size"]),
        ({"page_size": 2**31 - 1}, ["page_size"]),
        ({"page_size": -(2**31)}, ["page_size"]),
        ({"status": 5}, ["status"]),
        ({"status": -1}, ["status"]),
        ({"type": "a\0"}, ["type"]),
        ({"type": "x" * 256, "source": "\n"}, ["type", "source"]),
        ({"received_after": Timestamp(seconds=2**62)}, ["received_after"]),
        ({"received_before": Timestamp(nanos=-1)}, ["received_before"]),
        ({"payload_format": 4}, ["payload_format"]),
        ({"page_token": "x"}, ["page_token"]),
        ({"page_token": "A" * 32}, ["page_token"]),
        ({"page_token": "\0"}, ["page_token"]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_listed_is_refused(
    alice: Caller, fields: dict[str, object], paths: list[str]
) -> None:
    refusal = refused(alice.list, **fields)

    assert refusal.verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert set(refusal.fields) == set(paths)


def test_counts_refuse_impossible_times(alice: Caller) -> None:
    bad = Timestamp(seconds=-(2**62))
    refusal = refused(alice.counts, received_after=bad, received_before=bad)

    assert set(refusal.fields) == {"received_after", "received_before"}


def test_a_token_of_one_question_is_refused_for_another(alice: Caller) -> None:
    alice.batch(event("a") for _ in range(3))
    token = alice.list(page_size=1).next_page_token

    assert refused(alice.list, page_token=token, type="a").fields.keys() == {"page_token"}
    assert len(alice.list(page_token=token, page_size=1, payload_format=NONE).events) == 1


def test_a_token_gives_nobody_access(alice: Caller, bob: Caller) -> None:
    alice.batch(event("a") for _ in range(3))
    bob.submit(event("b"))
    token = alice.list(page_size=1).next_page_token

    assert {one.type for one in bob.list(page_token=token).events} <= {"b"}
    assert alice.subject.encode() not in base64.urlsafe_b64decode(token + "==")


def test_a_page_carries_about_a_million_characters_however_many_are_asked_for(
    alice: Caller,
) -> None:
    for _ in range(3):
        alice.batch(event("big", payload={"text": "x" * 450_000}) for _ in range(2))
    alice.submit(event("bigger", payload={"text": "x" * 4_100_000}))
    pages = list(alice.pages(page_size=1_000))

    assert [len(page.events) for page in pages] == [1, 2, 2, 2]
    assert len(alice.list(page_size=1_000, payload_format=NONE).events) == 7


def test_a_page_of_large_events_comes_however_many_there_are(alice: Caller) -> None:
    """All that might come was measured first, for longer than a statement may take."""
    text = base64.b64encode(os.urandom(750_000)).decode() * 4
    for number in range(20):
        alice.submit(event(f"t{number}", payload={"text": text}))

    pages = islice(alice.pages(), 4)

    assert [[one.type for one in page.events] for page in pages] == [
        ["t19"],
        ["t18"],
        ["t17"],
        ["t16"],
    ]


def test_a_page_is_filled_over_several_steps_and_not_beyond(alice: Caller) -> None:
    """Events of 90,000 characters, of which PostgreSQL measures two at a time."""
    text = base64.b64encode(os.urandom(67_500)).decode()
    alice.stream([[event(payload={"text": text})]] * 25)

    assert [len(page.events) for page in alice.pages()] == [11, 11, 3]


def test_a_page_of_processed_events_fits_a_message_though_each_payload_comes_twice(
    service: Service, alice: Caller
) -> None:
    """As payload and as properties.original; the client takes 4 MiB by default."""
    for _ in range(3):
        alice.batch(event("big", payload={"text": "x" * 1_000_000}) for _ in range(2))
    service.process_all(alice)

    assert sum(len(page.events) for page in alice.pages(page_size=1_000)) == 6


def test_a_page_of_events_with_many_attributes_fits_a_message(alice: Caller) -> None:
    """Attributes count too, and bytes may be four times as many as characters."""
    attributes = {f"name-{number}": "😀" * 250 for number in range(60)}
    alice.stream([[event(attributes=attributes)] * 20] * 10)

    pages = list(alice.pages(page_size=1_000, payload_format=NONE))

    assert sum(len(page.events) for page in pages) == 200


def test_a_payload_of_many_small_values_can_be_read_back(service: Service, alice: Caller) -> None:
    """As a Struct a number of one digit takes 13 bytes and more."""
    receipt = alice.submit(event("many", payload={"numbers": [1] * 99_999}))
    service.process_all(alice)

    stored = alice.get(receipt.event_id)

    assert stored.status == event_pb2.EVENT_STATUS_PROCESSED
    assert stored.payload_json.count("1") == 99_999
    assert len(alice.list().events) == 1


def test_one_event_of_the_largest_size_can_be_read_back(service: Service, alice: Caller) -> None:
    attributes = {f"k{number:02}": "v" * 1_000 for number in range(64)}
    room = MAX_EVENT_BYTES - len(json.dumps(attributes, separators=(",", ":")))
    text = "x" * (room - len('{"text":""}'))
    too_large = event("big", payload={"text": text + "x"}, attributes=attributes)
    receipt = alice.submit(event("big", payload={"text": text}, attributes=attributes))
    service.process_all(alice)

    stored = alice.get(receipt.event_id)

    assert stored.status == event_pb2.EVENT_STATUS_INVALID
    assert stored.payload["text"] == text
    assert len(alice.list().events) == 1
    assert list(refused(alice.submit, too_large).fields) == ["event.payload"]


def test_listing_is_quick_whatever_the_filter(alice: Caller) -> None:
    alice.stream([[event()] * 1_000] * 5)
    started = time.monotonic()
    alice.list(type="none")
    alice.list(status=event_pb2.EVENT_STATUS_FAILED)

    assert time.monotonic() - started < 2
