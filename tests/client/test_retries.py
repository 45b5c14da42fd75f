"""Which calls are repeated, how, and for how long."""

from collections.abc import Iterator

import grpc
import pytest

from ingest.client import IngestClient
from ingest.errors import (
    AuthenticationFailed,
    IngestError,
    InvalidEvent,
    RateLimited,
    Unavailable,
)
from ingest.events import new_event
from ingest.retry import RetryPolicy, call_until_answered
from ingest.v1.event_pb2 import EventInput
from tests.client.fake_service import Failure, FakeService

UNAVAILABLE = Failure(code=grpc.StatusCode.UNAVAILABLE, reason="DRAINING", retry_delay=0.001)


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNKNOWN,
    ],
)
def test_a_submit_whose_answer_is_lost_is_stored_once(
    service: FakeService, client: IngestClient, code: grpc.StatusCode
) -> None:
    service.failures += [Failure(code=code, after=True)]
    receipt = client.submit(EventInput(type="a"))
    assert receipt.duplicate
    assert len(service.events) == 1
    assert service.calls == ["SubmitEvent"] * 2


def test_reads_are_repeated_as_well(service: FakeService, client: IngestClient) -> None:
    service.failures += [UNAVAILABLE, UNAVAILABLE]
    assert len(client.counts().counts) == 1


def test_a_batch_keeps_its_keys_when_it_is_repeated(
    service: FakeService, client: IngestClient
) -> None:
    service.failures += [Failure(code=grpc.StatusCode.UNAVAILABLE, after=True)]
    receipts = client.submit_batch(EventInput(type="a") for _ in range(3))
    assert [receipt.duplicate for receipt in receipts] == [True] * 3
    assert len(service.events) == 3


def test_an_event_of_the_caller_is_not_changed(client: IngestClient) -> None:
    event = EventInput(type="a")
    first, second = client.submit(event), client.submit(event)
    assert first.event_id != second.event_id
    assert event == EventInput(type="a")


def test_an_event_made_by_new_event_is_stored_once(client: IngestClient) -> None:
    event = new_event("a")
    assert client.submit(event).event_id == client.submit(event).event_id


def test_permanent_errors_are_not_repeated(service: FakeService, client: IngestClient) -> None:
    service.failures += [Failure(code=grpc.StatusCode.INVALID_ARGUMENT, reason="FIELD_INVALID")]
    with pytest.raises(InvalidEvent):
        client.submit(new_event("a"))
    assert service.calls == ["SubmitEvent"]


def test_a_rate_limit_is_waited_out(service: FakeService, client: IngestClient) -> None:
    service.failures += [
        Failure(code=grpc.StatusCode.RESOURCE_EXHAUSTED, reason="RATE_LIMITED", retry_delay=0.001)
    ]
    assert not client.submit(new_event("a")).duplicate
    assert len(service.calls) == 2


def test_exhaustion_without_a_delay_is_permanent(
    service: FakeService, client: IngestClient
) -> None:
    service.failures += [Failure(code=grpc.StatusCode.RESOURCE_EXHAUSTED)]
    with pytest.raises(IngestError) as caught:
        client.submit(new_event("a"))
    assert not isinstance(caught.value, RateLimited)
    assert len(service.calls) == 1


def test_a_bug_of_the_server_is_permanent(service: FakeService, client: IngestClient) -> None:
    service.failures += [Failure(code=grpc.StatusCode.UNKNOWN, reason="INTERNAL")]
    with pytest.raises(IngestError):
        client.submit(new_event("a"))
    assert len(service.calls) == 1


def test_a_server_that_is_not_there_is_given_up(policy: RetryPolicy) -> None:
    with (
        IngestClient("127.0.0.1:1", "a-token", policy=policy) as client,
        pytest.raises(Unavailable),
    ):
        client.submit(new_event("a"), timeout=0.05)


def test_a_server_that_does_not_answer_is_given_up(service: FakeService) -> None:
    service.hang = True
    policy = RetryPolicy(attempt_timeout=0.03, first_backoff=0.001, patience=0)
    with (
        IngestClient(service.target, "a-token", policy=policy) as client,
        pytest.raises(Unavailable) as caught,
    ):
        client.submit(new_event("a"))
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_delay_beyond_the_timeout_is_not_begun(
    service: FakeService, client: IngestClient
) -> None:
    service.failures += [Failure(code=grpc.StatusCode.UNAVAILABLE, retry_delay=0.9)]
    with pytest.raises(Unavailable) as caught:
        client.submit(new_event("a"), timeout=0.5)
    assert caught.value.retry_delay == pytest.approx(0.9)


def test_the_server_s_delay_comes_before_the_jitter() -> None:
    policy = RetryPolicy(first_backoff=1, max_backoff=4)
    for failures, ceiling in [(1, 1), (2, 2), (3, 4), (4, 4), (5000, 4)]:
        assert 0 <= policy.backoff(failures, None) <= ceiling
        assert 7 <= policy.backoff(failures, 7) <= 7 + ceiling


def test_pauses_end_with_the_patience() -> None:
    pauses: list[float] = []

    def attempt(seconds: float) -> None:
        assert seconds == 10
        raise Unavailable("no", retry_delay=2.0)

    policy = RetryPolicy(patience=1)
    with pytest.raises(Unavailable):
        call_until_answered(
            attempt, policy=policy, attempt_timeout=10, timeout=None, pause=pauses.append
        )
    assert pauses == []


def test_the_token_is_asked_for_before_each_attempt(
    service: FakeService, policy: RetryPolicy
) -> None:
    tokens: Iterator[str] = iter(["first", "second\n"])
    service.failures += [UNAVAILABLE]
    with IngestClient(service.target, lambda: next(tokens), policy=policy) as client:
        client.submit(new_event("a"))
    assert service.tokens == ["first", "second"]


@pytest.mark.parametrize("token", ["", " \n", "secret\nvalue", "secret-ä"])
def test_a_token_that_cannot_be_sent_is_refused_without_showing_it(
    service: FakeService, policy: RetryPolicy, token: str
) -> None:
    with (
        IngestClient(service.target, token, policy=policy) as client,
        pytest.raises(AuthenticationFailed) as caught,
    ):
        client.submit(new_event("a"))
    assert "secret" not in str(caught.value)
    assert service.calls == []
