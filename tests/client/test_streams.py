"""Streams of any length: how they are split, repeated and added up."""

from collections.abc import Iterator

import grpc
import pytest

from ingest import split
from ingest.client import IngestClient
from ingest.errors import IngestError, InvalidEvent
from ingest.v1.event_pb2 import EventInput
from tests.client.fake_service import Failure, FakeService


def numbered(count: int, pulled: list[int] | None = None) -> Iterator[EventInput]:
    for number in range(count):
        if pulled is not None:
            pulled.append(number)
        yield EventInput(type="a", idempotency_key=f"key-{number}")


def test_a_long_stream_becomes_several_calls(service: FakeService, client: IngestClient) -> None:
    answers = list(client.submit_calls(numbered(20_001)))
    assert [answer.received for answer in answers] == [10_000, 10_000, 1]
    indexes = [receipt.index for answer in answers for receipt in answer.receipts]
    assert indexes == list(range(20_001))
    assert len(service.events) == 20_001


def test_the_sum_is_exact_and_bounded(client: IngestClient) -> None:
    total = client.submit_stream(numbered(10_001))
    assert (total.received, total.accepted, total.duplicates, total.rejected) == (
        10_001,
        10_001,
        0,
        0,
    )
    assert len(total.receipts) == 10_000
    assert total.receipts_truncated


def test_no_events_are_no_call(service: FakeService, client: IngestClient) -> None:
    assert client.submit_stream([]).received == 0
    assert service.calls == []


def test_only_the_broken_call_is_repeated(service: FakeService, client: IngestClient) -> None:
    service.failures += [None, Failure(code=grpc.StatusCode.UNAVAILABLE, after=True)]
    answers = list(client.submit_calls(numbered(10_500)))
    assert [(answer.accepted, answer.duplicates) for answer in answers] == [(10_000, 0), (0, 500)]
    assert service.streams == [10_000, 500, 500]


def test_a_stream_that_breaks_is_stored_once(service: FakeService, client: IngestClient) -> None:
    service.failures += [
        Failure(code=grpc.StatusCode.UNAVAILABLE),
        Failure(code=grpc.StatusCode.UNKNOWN, after=True),
    ]
    total = client.submit_stream(EventInput(type="a") for _ in range(1_200))
    assert (total.received, total.duplicates) == (1_200, 1_200)
    assert len(service.events) == 1_200
    assert len(service.calls) == 3


def test_a_permanent_error_ends_the_stream(service: FakeService, client: IngestClient) -> None:
    service.failures += [Failure(code=grpc.StatusCode.PERMISSION_DENIED, reason="SCOPE_MISSING")]
    with pytest.raises(IngestError):
        client.submit_stream(numbered(3))
    assert len(service.calls) == 1


def test_what_an_early_answer_leaves_out_is_sent_again(
    service: FakeService, client: IngestClient
) -> None:
    service.take += [700, 0]
    total = client.submit_stream(numbered(1_600))
    assert (total.received, total.accepted) == (1_600, 1_600)
    assert [receipt.index for receipt in total.receipts] == list(range(1_600))
    assert len(service.calls) == 3


def test_rejections_are_numbered_through_all_calls(client: IngestClient) -> None:
    events = list(numbered(10_002))
    events[10_001].type = ""
    total = client.submit_stream(events)
    assert total.rejected == 1
    assert [rejection.index for rejection in total.rejections] == [10_001]


def test_an_event_too_large_for_a_message_is_rejected_alone(
    service: FakeService, client: IngestClient
) -> None:
    events = list(numbered(5))
    events[2].payload_json = "1" * split.LARGEST_EVENT
    total = client.submit_stream(events)
    assert (total.received, total.accepted, total.rejected) == (5, 4, 1)
    assert [rejection.index for rejection in total.rejections] == [2]
    assert [receipt.index for receipt in total.receipts] == [0, 1, 3, 4]


def test_the_largest_event_fits_into_a_message(client: IngestClient) -> None:
    event = EventInput(type="a", idempotency_key="k")
    event.payload_json = "1" * (split.LARGEST_EVENT - event.ByteSize() - 5)
    assert event.ByteSize() == split.LARGEST_EVENT
    assert client.submit_stream([event]).accepted == 1


def test_events_are_pulled_one_call_ahead(client: IngestClient) -> None:
    pulled: list[int] = []
    answers = client.submit_calls(numbered(50_000, pulled))
    next(answers)
    # Two calls, and the event that showed the second to be full.
    assert len(pulled) == 20_001


def test_an_error_of_the_iterable_comes_through(client: IngestClient) -> None:
    def broken() -> Iterator[EventInput]:
        yield from numbered(3)
        raise InvalidEvent("mine")

    with pytest.raises(InvalidEvent, match="mine"):
        client.submit_stream(broken())


def test_calls_and_messages_are_bounded_in_count_and_bytes() -> None:
    small = list(numbered(1_001))
    assert [len(message.events) for message in split.messages(small)] == [500, 500, 1]
    large = [EventInput(type="a", idempotency_key="k", payload_json="1" * 600_000)] * 60
    assert [len(message.events) for message in split.messages(large)] == [1] * 60
    assert [len(call) for call in split.calls(large)] == [27, 27, 6]
