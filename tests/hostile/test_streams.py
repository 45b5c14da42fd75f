"""Clients that are slow, silent, deaf or endless: they cost little, and nobody else waits."""

import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from eventstore import migrations
from ingest.v1 import ingest_service_pb2 as pb
from ingest.v1.event_pb2 import EventInput
from tests.hostile.frames import connections, message
from tests.hostile.vitals import rss
from tests.kit.caller import Caller, event
from tests.kit.server import Service, Start, settings_for
from tests.kit.waiting import eventually

#: A million in the long form.
EVENTS = min(1_000_000, 50_000 * int(os.environ.get("HOSTILE_FACTOR", "1")))
#: Calls that are opened at once on one connection.
STREAMS = 100
SUBMIT = pb.SubmitEventRequest(event=event(payload="x" * 200)).SerializeToString()
STREAM = pb.StreamEventsRequest(events=[event(payload="x" * 200)]).SerializeToString()
#: What a call may begin with and then say nothing more; the last ones say that this was all.
BEGINNINGS = {
    "nothing": ("StreamEvents", b"", False),
    "half a length": ("StreamEvents", message(STREAM)[:3], False),
    "half a message": ("StreamEvents", message(STREAM)[:150], False),
    "one message": ("StreamEvents", message(STREAM), False),
    "no unary message": ("SubmitEvent", b"", False),
    "half a unary message": ("SubmitEvent", message(SUBMIT)[:150], False),
    "an end in place of a unary message": ("SubmitEvent", b"", True),
    "an end within a unary message": ("SubmitEvent", message(SUBMIT)[:150], True),
}
DEADLINE_EXCEEDED, INVALID_ARGUMENT = (
    str(code.value[0])
    for code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INVALID_ARGUMENT)
)


def is_served_within(service: Service, seconds: float) -> bool:
    """Whether a good call on a connection of its own is quick, at the best of three times."""
    took = []
    with grpc.insecure_channel(service.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        for _ in range(3):
            somebody = Caller(channel, service.caller().token)
            began = time.monotonic()
            assert somebody.is_served()
            took.append(time.monotonic() - began)
    return min(took) < seconds


@pytest.fixture
def start(start_service: Start, redis_url: str, tmp_path: Path) -> Start:
    """Start a server with other settings, on SQLite: what is looked at here stores little."""

    def start(**settings: str) -> Service:
        url = f"sqlite:///{tmp_path / 'ingest.db'}"
        migrations.upgrade(url)
        return start_service(settings_for(url, redis_url, **settings))

    return start


def test_a_byte_a_second_is_as_good_as_silence(service: Service) -> None:
    """Only whole messages count as activity, and the server waits two seconds for one."""
    slow = service.caller()
    before = rss(service)
    with connections(service.port, 5) as made:
        streams = [(one, one.open("StreamEvents", slow)) for one in made for _ in range(20)]
        began = time.monotonic()
        rest = iter(message(STREAM))

        def all_ended() -> bool:
            byte = bytes([next(rest)])
            for connection, stream in streams:
                if stream not in connection.ended():
                    connection.feed(stream, byte)
            assert service.caller().is_served()
            return all(stream in connection.ended() for connection, stream in streams)

        eventually(all_ended, timeout=20, interval=1.0)
        said = {connection.ended()[stream] for connection, stream in streams}

    assert time.monotonic() - began >= 2
    assert DEADLINE_EXCEEDED in said
    assert said <= {DEADLINE_EXCEEDED, ""}
    assert slow.counts() == {}
    assert rss(service) - before < 30 << 20


def test_calls_that_begin_and_say_no_more_are_ended(service: Service) -> None:
    """Streams and unary calls alike, with a status; unary ones that are whole but empty at once."""
    quiet = service.caller()
    before = rss(service)
    with connections(service.port, len(BEGINNINGS)) as made:
        calls = {
            name: (connection, [connection.open(method, quiet, body, end=end) for _ in range(100)])
            for connection, (name, (method, body, end)) in zip(
                made, BEGINNINGS.items(), strict=True
            )
        }
        assert is_served_within(service, 1.0)
        said = {}
        for name, (connection, streams) in calls.items():
            eventually(lambda o=connection, s=streams: o.ended().keys() >= {*s}, timeout=20)  # type: ignore[misc]
            said[name] = {*connection.ended().values()} - {""}
        assert rss(service) - before < 60 << 20
    assert said == {
        name: {INVALID_ARGUMENT if end else DEADLINE_EXCEEDED}
        for name, (_, _, end) in BEGINNINGS.items()
    }
    assert quiet.counts() == {"PENDING": 100}


def test_three_thousand_idle_streams_fit_and_are_forgotten(start: Start) -> None:
    """Each has sent an event and waits; then their connections break."""
    service = start()
    assert service.caller().is_served()
    empty = rss(service)
    held = []
    for _ in range(2):
        idler = service.caller()
        with connections(service.port, 30) as made:
            # Not all at once: when a thousand calls wait to begin, gRPC refuses some at random.
            for number, connection in enumerate(made, 1):
                for _ in range(STREAMS):
                    connection.open("StreamEvents", idler, message(STREAM))
                stored = {"PENDING": number * STREAMS}
                eventually(lambda who=idler, all_=stored: who.counts() == all_)  # type: ignore[misc]
            assert is_served_within(service, 1.0)
            assert not any(connection.ended() for connection in made)
            held.append(rss(service) - empty)

    assert held[0] <= 100 << 20
    # What the first crowd took is used again by the next ones: nothing is kept for those gone.
    assert held[1] <= held[0] + (25 << 20)


def test_a_stream_that_never_ends_is_answered_in_the_end(start: Start) -> None:
    """With exactly what was stored, after INGEST_STREAM_MAX_SECONDS."""
    service = start(STREAM_MAX_SECONDS="1")
    alice, answered = service.caller(), threading.Event()

    def endless() -> Iterator[Sequence[EventInput]]:
        while not answered.is_set():
            yield [event()] * 10

    summary = alice.stream(endless(), timeout=60)
    answered.set()

    assert summary.received == summary.accepted > 0
    assert alice.counts() == {"PENDING": summary.accepted}


def test_a_stream_of_very_many_small_events_is_counted_to_the_last(service: Service) -> None:
    """A million in the long form, in messages of one to a thousand."""
    alice, rng = service.caller(), random.Random(1)  # noqa: S311  # repeatable, no secret
    sizes = [rng.choice((1, 2, 10, 100, 1_000)) for _ in range(EVENTS // 220)]
    one = pb.StreamEventsRequest(events=[event("s")]).SerializeToString()
    alice.wire_stream([one * 1_000] * 15)
    memory = rss(service)

    summary = pb.StreamEventsResponse.FromString(
        alice.wire_stream((one * size for size in sizes), timeout=300)
    )

    assert summary.received == summary.accepted == sum(sizes)
    assert alice.counts() == {"PENDING": sum(sizes) + 15_000}
    assert rss(service) - memory < 40 << 20
    assert is_served_within(service, 1.0)


def test_a_long_stream_takes_no_more_memory_than_a_short_one(service: Service) -> None:
    alice = service.caller()
    wire = pb.StreamEventsRequest(events=[event("long")] * 1_000).SerializeToString()
    alice.wire_stream([wire] * 15)
    before = rss(service)

    summary = pb.StreamEventsResponse.FromString(alice.wire_stream([wire] * 60))

    assert summary.received == summary.accepted == 60_000
    assert len(summary.receipts) == 10_000
    assert rss(service) - before < 40 << 20


def test_who_sends_more_than_the_server_reads_is_held_back(start: Start) -> None:
    """Not reading is what slows a client down: 60 streams that would send 20 MB each."""
    service = start(USER_BYTES_PER_SECOND="1")
    eager = service.caller()
    taken: list[int] = []
    wire = pb.StreamEventsRequest(events=[event(payload="x" * 250_000)]).SerializeToString()

    def twenty_megabytes() -> Iterator[bytes]:
        for _ in range(80):
            taken.append(len(wire))
            yield wire

    before = rss(service)
    with ExitStack() as opened:
        for _ in range(6):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = opened.enter_context(grpc.insecure_channel(service.address, options))
            call = channel.stream_unary("/ingest.v1.IngestService/StreamEvents", _same, _same)
            for _ in range(10):
                stream = call.future(twenty_megabytes(), metadata=eager.metadata)
                opened.callback(stream.cancel)
        eventually(lambda: eager.counts().get("PENDING", 0) >= 60, timeout=60, interval=0.2)
        eventually(lambda: _is_still(taken), timeout=30)
        assert rss(service) - before < 100 << 20
        assert is_served_within(service, 1.0)
    assert sum(taken) < 200 << 20


@pytest.mark.parametrize("method", ["SubmitEvent", "StreamEvents"])
def test_who_reads_no_receipts_disturbs_nobody(service: Service, method: str) -> None:
    deaf = service.caller()
    body = message(SUBMIT if method == "SubmitEvent" else STREAM)
    with connections(service.port, 4, window=0) as made:
        for connection in made:
            for _ in range(STREAMS):
                connection.open(method, deaf, body, end=True)
        eventually(lambda: deaf.counts() == {"PENDING": 4 * STREAMS}, timeout=30)
        assert is_served_within(service, 1.0)


def _same(wire: bytes) -> bytes:
    return wire


def _is_still(taken: list[int]) -> bool:
    """Whether nothing more is taken for half a second."""
    count = len(taken)
    try:
        eventually(lambda: len(taken) > count, timeout=0.5)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_a_health_call_whose_message_does_not_come_whole_is_ended(
    service: Service, method: str
) -> None:
    """It needs no token, so that anybody could hold memory for as long as the connection."""
    path: dict[str, Any] = {":path": f"/grpc.health.v1.Health/{method}"}
    with connections(service.port, 1) as (connection,):
        calls = {connection.open(method, service.nobody(), b"\0\0\1", **path) for _ in range(100)}
        eventually(lambda: connection.ended().keys() >= calls, timeout=20)
        assert {*connection.ended().values()} <= {DEADLINE_EXCEEDED, ""}
