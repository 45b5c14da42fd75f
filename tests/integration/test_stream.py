"""Client streams: counts are exact, bad events are reported, and events are there as they come."""

import threading
from collections.abc import Iterator, Sequence

from ingest.v1.event_pb2 import EventInput
from tests.kit.caller import Caller, event, refused
from tests.kit.waiting import eventually


def test_counts_are_exact_and_receipts_come_in_order(alice: Caller) -> None:
    answer = alice.stream([event(f"t{number}")] * 10 for number in range(20))
    stored = [one.event_id for page in alice.pages(page_size=50) for one in page.events]

    assert (answer.received, answer.accepted) == (200, 200)
    assert (answer.duplicates, answer.rejected) == (0, 0)
    assert [receipt.index for receipt in answer.receipts] == list(range(200))
    assert [receipt.event_id for receipt in answer.receipts] == stored[::-1]
    assert not answer.receipts_truncated


def test_a_stream_without_a_message_is_answered_with_zeros(alice: Caller) -> None:
    answer = alice.stream([])

    assert (answer.received, answer.accepted, answer.rejected) == (0, 0, 0)


def test_messages_without_events_are_passed_over(alice: Caller) -> None:
    answer = alice.stream([[], [event()], [], [event()], []])

    assert [receipt.index for receipt in answer.receipts] == [0, 1]


def test_bad_events_are_named_by_position_and_the_others_stored(alice: Caller) -> None:
    answer = alice.stream(
        [
            [event("a"), event("")],
            [event("b", payload_json="{")],
            [event("c"), event("d", payload_json='{"x": {"y": [1e999]}}'), event("e")],
        ]
    )

    assert (answer.received, answer.accepted, answer.rejected) == (6, 3, 3)
    assert [receipt.index for receipt in answer.receipts] == [0, 3, 5]
    assert [
        (one.index, one.reason, [violation.field for violation in one.field_violations])
        for one in answer.rejections
    ] == [
        (1, "FIELD_INVALID", ["events[1].type"]),
        (2, "FIELD_INVALID", ["events[2].payload_json"]),
        (4, "FIELD_INVALID", ["events[4].payload_json.x.y[0]"]),
    ]
    assert sorted(one.type for one in alice.list().events) == ["a", "c", "e"]


def test_the_same_key_in_one_stream_is_one_event(alice: Caller) -> None:
    one = event("one", idempotency_key="k")
    answer = alice.stream([[one, event("two")], [one], [one, one]])

    assert (answer.received, answer.accepted, answer.duplicates) == (5, 2, 3)
    assert [receipt.duplicate for receipt in answer.receipts] == [False, False, True, True, True]
    assert len({receipt.event_id for receipt in answer.receipts}) == 2
    assert alice.counts() == {"PENDING": 2}


def test_a_conflict_in_a_stream_is_reported_with_the_first_event(alice: Caller) -> None:
    first = alice.submit(event("one", idempotency_key="k"))

    answer = alice.stream([[event("a"), event("two", idempotency_key="k")], [event("b")]])

    assert (answer.accepted, answer.rejected) == (2, 1)
    (rejection,) = answer.rejections
    assert (rejection.index, rejection.reason) == (1, "IDEMPOTENCY_CONFLICT")
    assert rejection.event_id == first.event_id


def test_a_stream_that_was_sent_again_stores_nothing_twice(alice: Caller) -> None:
    messages = [
        [event("t", idempotency_key=f"{message}.{number}") for number in range(50)]
        for message in range(10)
    ]
    first, again = alice.stream(messages), alice.stream(messages)

    assert (again.received, again.accepted, again.duplicates) == (500, 0, 500)
    assert [one.event_id for one in first.receipts] == [one.event_id for one in again.receipts]
    assert alice.counts() == {"PENDING": 500}


def test_receipts_and_rejections_of_a_long_stream_are_cut_and_counts_are_not(
    alice: Caller,
) -> None:
    good, bad = [event()] * 1_000, [event("")] * 130
    answer = alice.stream([*good, *bad] for _ in range(11))

    assert (answer.received, answer.accepted, answer.rejected) == (12_430, 11_000, 1_430)
    assert len(answer.receipts) == 10_000
    assert answer.receipts_truncated
    assert len(answer.rejections) == 1_000
    assert alice.counts() == {"PENDING": 11_000}


def test_what_is_told_of_bad_events_fits_into_an_answer(alice: Caller) -> None:
    """A thousand events with 64 bad attributes each: a client with gRPC's own limit reads it."""
    bad = event(attributes={f"{n}-{'k' * 60}": "\0" for n in range(64)})
    answer = alice.stream([bad] * 100 for _ in range(12))

    assert (answer.received, answer.rejected) == (1_200, 1_200)
    assert [one.index for one in answer.rejections] == list(range(1_000))
    assert len(answer.rejections[0].field_violations) == 20
    assert not answer.rejections[-1].field_violations
    assert answer.ByteSize() < 2 << 20


class Held:
    """A stream that stays open until it is told to end."""

    def __init__(self, *messages: Sequence[EventInput]) -> None:
        self._messages = messages
        self.end = threading.Event()

    def __iter__(self) -> Iterator[Sequence[EventInput]]:
        yield from self._messages
        self.end.wait(15)


def test_events_are_there_before_the_stream_ends(alice: Caller) -> None:
    held = Held([event("first")], [event("second")])
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(alice.stream(held)))
    thread.start()

    eventually(lambda: alice.counts() == {"PENDING": 2})
    assert not answers
    held.end.set()
    thread.join()

    assert len(answers) == 1


def test_a_stream_that_says_nothing_is_ended(alice: Caller) -> None:
    """And what it had sent before is stored."""
    held = Held([event("before")])

    assert refused(alice.stream, held, timeout=10).code.name == "DEADLINE_EXCEEDED"
    assert alice.counts() == {"PENDING": 1}
    held.end.set()


def test_a_cancelled_stream_leaves_whole_events_or_none(alice: Caller) -> None:
    held = Held(*[[event(idempotency_key=f"k{number}")] for number in range(100)])
    thread = threading.Thread(target=lambda: refused(alice.stream, held, timeout=1))
    thread.start()
    eventually(lambda: alice.counts().get("PENDING", 0) == 100)
    thread.join()
    held.end.set()

    answer = alice.stream([[event(idempotency_key=f"k{number}")] for number in range(120)])

    assert (answer.accepted, answer.duplicates) == (20, 100)
    assert alice.is_served()
