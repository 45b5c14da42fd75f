"""Messages of very many events, or large ones, do not keep others waiting."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ingest.v1 import ingest_service_pb2 as pb
from ingest.v1.event_pb2 import EventInput
from tests.hostile.vitals import rss
from tests.kit.caller import Caller, event
from tests.kit.server import Service


@pytest.mark.parametrize(
    "wire, count, messages",
    [(b"\x0a\x00", 32_700, 8), (b"\x0a\x00", 200_000, 1), (b"\x0a\x03\x0a\x01t", 40_000, 1)],
    ids=["empty", "many empty", "good"],
)
def test_a_message_of_very_many_events_disturbs_nobody(
    service: Service, bob: Caller, alice: Caller, wire: bytes, count: int, messages: int
) -> None:
    """All of it is judged, and meanwhile health and another user's events have their turn."""
    health = health_pb2_grpc.HealthStub(service.channel)
    before, answers = rss(service), []
    sent = [wire * count] * messages
    sender = threading.Thread(target=lambda: answers.append(bob.wire_stream(sent, timeout=60)))
    sender.start()
    turns = 0
    while sender.is_alive():
        health.Check(health_pb2.HealthCheckRequest(), timeout=5)  # type: ignore[attr-defined]  # a stub's
        alice.submit(event())
        turns += 1
        time.sleep(0.01)  # to leave the machine to the server
    sender.join()

    answer = pb.StreamEventsResponse.FromString(answers[0])
    events = count * messages
    assert (answer.received, answer.accepted) == (events, events if wire[1] else 0)
    assert turns >= events / 60_000
    assert rss(service) - before < 250 << 20


def test_many_messages_of_very_many_events_take_no_more_memory_than_one(service: Service) -> None:
    """Four streams at once: each message is parsed in parts, and none waits as a whole."""
    before, most = rss(service), 0
    with ThreadPoolExecutor(4) as pool:
        wire = b"\x0a\x00" * 100_000
        answers = [pool.submit(service.caller().wire_stream, [wire], 60) for _ in range(4)]
        while not all(answer.done() for answer in answers):
            most = max(most, rss(service))
            time.sleep(0.05)  # between two looks
    for answer in answers:
        assert pb.StreamEventsResponse.FromString(answer.result()).received == 100_000
    assert most - before < 40 << 20


def test_a_stream_keeps_its_order_across_large_and_small_messages(alice: Caller) -> None:
    small = [EventInput(type="small")]
    large = [EventInput(type="large", payload_json='"' + "x" * 300_000 + '"')]
    bad = [EventInput(type="", payload_json='"' + "x" * 300_000 + '"')]

    answer = alice.stream([small, large, small, bad, small])

    assert (answer.received, answer.accepted, answer.rejected) == (5, 4, 1)
    assert [receipt.index for receipt in answer.receipts] == [0, 1, 2, 4]
    assert [rejection.index for rejection in answer.rejections] == [3]
    listed = [one.type for page in alice.pages() for one in page.events]
    assert listed == ["small", "small", "large", "small"]


def test_a_stream_of_large_messages_counts_exactly(alice: Caller) -> None:
    message = [EventInput(type="large", payload_json='"' + "x" * 1_000 + '"')] * 100

    answer: pb.StreamEventsResponse = alice.stream([message] * 20)

    assert (answer.received, answer.accepted) == (2_000, 2_000)
    assert [receipt.index for receipt in answer.receipts] == list(range(2_000))
