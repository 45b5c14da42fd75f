"""Connections that speak something else, or nothing: closed or ignored, and the service stays."""

import gzip
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from eventstore import migrations
from ingest.v1 import ingest_service_pb2 as pb
from ingest_service.health import MOST_WATCHERS
from ingest_service.server import MAX_STREAMS
from tests.hostile.frames import PREFACE, SETTINGS, connections, frame, literal, message
from tests.hostile.vitals import rss
from tests.kit.caller import Caller, event
from tests.kit.server import Service, Start, record, settings_for
from tests.kit.waiting import eventually

#: The first bytes of a TLS 1.2 hello.
HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(193)


def headers_and_reset(count: int) -> bytes:
    """Streams that are opened and reset at once (CVE-2023-44487)."""
    block = b"\x83\x86\x44\x01/"  # POST http /
    return b"".join(
        frame(1, 4, 2 * number + 1, block) + frame(3, 0, 2 * number + 1, b"\0\0\0\x08")
        for number in range(count)
    )


def hpack_bomb() -> bytes:
    """One field of 4,000 bytes in the table, and a request that names it 16,000 times."""
    stored = b"\x40" + literal("x", "y" * 4_000)[1:]
    first = frame(1, 5, 1, b"\x83\x86\x44\x01/" + stored)
    block = b"\x83\x86\x44\x01/" + b"\xbe" * 16_000
    return first + b"".join(frame(1, 5, number, block) for number in range(3, 43, 2))


#: The same in every run, so that a failure can be repeated.
RANDOM = Random(1)  # noqa: S311  # no secret
OPEN = PREFACE + SETTINGS + frame(1, 1, 1, b"\x83\x86\x44\x01/")
SPOKEN = {
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "HTTP/1.1 upgrade": b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    "TLS hello": HELLO,
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "random bytes": RANDOM.randbytes(2_000),
    "zeros": bytes(5_000),
    "half a preface": PREFACE[:10],
    "preface and random": PREFACE + RANDOM.randbytes(1_000),
    "frame beyond its limit": PREFACE + SETTINGS + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    "data on stream 0": PREFACE + SETTINGS + frame(0, 1, 0, b"x"),
    "even stream": PREFACE + SETTINGS + frame(1, 5, 2, b"\x83"),
    "settings with payload of 5": PREFACE + frame(4, 0, 0, b"12345"),
    "window update of 0": PREFACE + SETTINGS + frame(8, 0, 0, bytes(4)),
    "window overflow": PREFACE + SETTINGS + frame(8, 0, 0, b"\x7f\xff\xff\xff") * 2,
    "bad HPACK": PREFACE + SETTINGS + frame(1, 5, 1, b"\xff" * 50),
    "HPACK bomb": PREFACE + SETTINGS + hpack_bomb(),
    "HPACK table of 4 GB": PREFACE + SETTINGS + frame(1, 5, 1, b"\x3f\xe1\xff\xff\xff\x0f\x83"),
    "HPACK text without end": PREFACE + SETTINGS + frame(1, 5, 1, b"\0\x7f\xff\xff\xff\xff\x07x"),
    "data without headers": PREFACE + SETTINGS + frame(0, 1, 1, b"x" * 1_000) * 100,
    "padding beyond the frame": PREFACE + SETTINGS + frame(0, 8, 1, b"\xff"),
    "answers to nothing": PREFACE + SETTINGS + frame(4, 1, 0) * 5_000 + frame(6, 1, 0, bytes(8)),
    "GOAWAY again and again": PREFACE + SETTINGS + frame(7, 0, 0, bytes(8)) * 5_000,
    "unknown frames": PREFACE + SETTINGS + frame(99, 255, 1, b"x" * 100) * 5_000,
    "resets": PREFACE + SETTINGS + headers_and_reset(2_000),
    "pings": PREFACE + SETTINGS + frame(6, 0, 0, bytes(8)) * 5_000,
    "settings flood": PREFACE + SETTINGS * 5_000,
    "priority flood": PREFACE + SETTINGS + frame(2, 0, 1, bytes(5)) * 5_000,
    "continuation without end": OPEN + frame(9, 0, 1, b"\x00\x01a\x01b" * 100) * 500,
    "empty frames": OPEN + frame(0, 0, 1) * 5_000,
}


@pytest.fixture
def connection(service: Service) -> Iterator[socket.socket]:
    with closing(socket.create_connection(("127.0.0.1", service.port), 5)) as made:
        made.settimeout(2)
        yield made


@pytest.mark.parametrize("name", SPOKEN)
def test_whatever_is_spoken_others_are_served(
    service: Service, connection: socket.socket, name: str
) -> None:
    try:
        connection.sendall(SPOKEN[name])
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65_536):
            pass
    except OSError:
        pass  # closed in the middle, as it may be

    assert service.process.returncode is None
    assert service.caller().is_served()


def test_floods_of_resets_do_not_fill_the_memory(service: Service) -> None:
    alice = service.caller()
    before = rss(service)
    for _ in range(5):
        with closing(socket.create_connection(("127.0.0.1", service.port), 5)) as made:
            try:
                made.sendall(SPOKEN["resets"])
            except OSError:
                continue
        assert alice.is_served()
    assert rss(service) - before < 60 << 20


@pytest.mark.parametrize("method", ["SubmitEvent", "GetEvent", "StreamEvents"])
def test_calls_that_are_dropped_before_they_say_anything_are_no_errors(
    service: Service, method: str
) -> None:
    """Some before their call has begun and some after; the log is looked at by `staying_well`."""
    alice = service.caller()
    with connections(service.port, 1) as (connection,):
        for number in range(500):
            stream = connection.open(method, alice)
            if number % 50 == 0:
                assert alice.is_served()
            connection.reset(stream)
        assert not connection.is_closed


def test_silent_connections_cost_nobody_anything(service: Service) -> None:
    silent = [socket.create_connection(("127.0.0.1", service.port), 5) for _ in range(200)]
    try:
        started = time.monotonic()
        assert service.caller().is_served()
        assert time.monotonic() - started < 2
    finally:
        for made in silent:
            made.close()


def test_who_does_not_introduce_himself_is_disconnected(
    start_service: Start, redis_url: str, tmp_path: Path
) -> None:
    """After the ten seconds of `handshake_seconds`, and not at once."""
    url = f"sqlite:///{tmp_path / 'ingest.db'}"
    migrations.upgrade(url)
    service = start_service(settings_for(url, redis_url))
    limits = record(service.process, "server_limits")
    assert limits is not None
    limit = limits["handshake_seconds"]
    here, began = ("127.0.0.1", service.port), time.monotonic()
    with socket.create_connection(here) as silent, socket.create_connection(here) as hesitant:
        hesitant.sendall(PREFACE[:10])
        for made in (silent, hesitant):
            made.settimeout(3 * limit)
            while made.recv(65_536):
                pass
            assert time.monotonic() - began >= limit / 2


WATCH: dict[str, Any] = {":path": "/grpc.health.v1.Health/Watch"}
#: Headers that no gRPC client sends, whether the message claims to be compressed, and how the call
#: ends. INTERNAL (13) is gRPC's own word for headers that it cannot read, before any code of ours.
HEADERS = {
    "unknown compression": ({"grpc_encoding": "zstd"}, True, "13"),
    "compression that is not named": ({}, True, "13"),
    "another content type": ({"content_type": "application/json"}, False, "0"),
    "no content type": ({"content_type": ""}, False, "0"),
    "GET": ({":method": "GET"}, False, "reset"),
    "a time-out that is none": ({"grpc_timeout": "soon"}, False, "13"),
    "a negative time-out": ({"grpc_timeout": "-1S"}, False, "13"),
    "a time-out without end": ({"grpc_timeout": "99999999H"}, False, "0"),
    "an odd scheme": ({":scheme": "ftp"}, False, "13"),
    "a line break in a value": ({"x_odd": "a\r\nb"}, False, "0"),
    "binary metadata that is not in base64": ({"grpc-trace-bin": " "}, False, "13"),
    "capitals in a name": ({"X_Odd": "a"}, False, "13"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_odd_headers_end_a_call_or_change_nothing(service: Service, name: str) -> None:
    fields, compressed, expected = HEADERS[name]
    alice = service.caller()
    wire = pb.SubmitEventRequest(event=event()).SerializeToString()

    body = message(wire, compressed=compressed)
    assert ended(service, alice, "SubmitEvent", body, **fields) == expected
    assert sum(alice.counts().values()) == (expected == "0")


SUBMITTED = pb.SubmitEventRequest(event=event()).SerializeToString()
#: What claims to be compressed and cannot be unpacked is gRPC's own INTERNAL, too.
PACKED = {
    "gzip": ("gzip", gzip.compress(SUBMITTED), "0"),
    "deflate": ("deflate", zlib.compress(SUBMITTED), "0"),
    "gzip with a wrong sum": ("gzip", gzip.compress(SUBMITTED)[:-8] + bytes(8), "13"),
    "gzip that is none": ("gzip", RANDOM.randbytes(100), "13"),
    "half of gzip": ("gzip", gzip.compress(SUBMITTED)[:20], "13"),
    "two members of gzip": ("gzip", gzip.compress(SUBMITTED) * 2, "13"),
    "deflate that is none": ("deflate", RANDOM.randbytes(100), "13"),
    "half of deflate": ("deflate", zlib.compress(SUBMITTED)[:10], "13"),
}


@pytest.mark.parametrize("name", PACKED)
def test_a_message_that_cannot_be_unpacked_ends_its_call(service: Service, name: str) -> None:
    encoding, packed, expected = PACKED[name]
    alice = service.caller()

    body = message(packed, compressed=True)
    assert ended(service, alice, "SubmitEvent", body, grpc_encoding=encoding) == expected
    assert sum(alice.counts().values()) == (expected == "0")


def test_a_connection_has_so_many_open_calls_and_no_more(service: Service) -> None:
    """A call beyond them is reset, and begins nothing."""
    with connections(service.port, 1) as (connection,):
        streams = [
            connection.open("", service.nobody(), message(b""), **WATCH)
            for _ in range(MAX_STREAMS + 44)
        ]
        eventually(lambda: len(connection.begun() | connection.ended().keys()) == len(streams))
        assert len(connection.begun()) == MAX_STREAMS
        assert [*connection.ended().values()] == ["reset"] * 44


def test_watchers_of_health_are_limited(service: Service) -> None:
    """Anybody may be one, and none ever ends; who only asks is answered as before."""
    with connections(service.port, MOST_WATCHERS // MAX_STREAMS + 2) as made:
        for connection in made:
            for _ in range(MAX_STREAMS):
                connection.open("", service.nobody(), message(b""), **WATCH)
            # Not all at once: when a thousand wait to begin, gRPC refuses some at random.
            eventually(
                lambda one=connection: len(one.begun() | one.ended().keys()) == MAX_STREAMS  # type: ignore[misc]  # mypy: a default in a lambda
            )
        calls = len(made) * MAX_STREAMS

        def told() -> tuple[int, int]:
            ends = [status for one in made for status in one.ended().values()]
            assert {*ends} <= {"8", ""}
            return sum(len(one.begun() - one.ended().keys()) for one in made), len(ends)

        eventually(lambda: told() == (MOST_WATCHERS, calls - MOST_WATCHERS), timeout=20)
        assert service.caller().is_served()
    stub: Any = health_pb2_grpc.HealthStub(service.channel)
    eventually(lambda: is_told(stub))


def is_told(stub: Any) -> bool:
    """Whether there is room for a watcher."""
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=5)
    try:
        return bool(next(watch).status)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # noqa: PT017  # or it was told
        return False
    finally:
        watch.cancel()


def ended(service: Service, caller: Caller, method: str, body: bytes, **fields: str) -> str:
    """Make a call and return its status."""
    with connections(service.port, 1) as (connection,):
        stream = connection.open(method, caller, body, end=True, **fields)
        eventually(lambda: stream in connection.ended())
        return connection.ended()[stream]


SUBMIT = message(pb.SubmitEventRequest(event=event()).SerializeToString())
STREAM = message(pb.StreamEventsRequest(events=[event()]).SerializeToString())
#: Bodies that no gRPC client sends, and how their calls end. Like a broken connection, half a
#: message is the end of a stream: the answer counts what came before.
BODIES = {
    "two messages": ("SubmitEvent", SUBMIT * 2, "0"),
    "a message and more": ("SubmitEvent", SUBMIT + b"\0\0", "0"),
    "a length of 4 GB": ("SubmitEvent", b"\0\xff\xff\xff\xff" + SUBMIT, "8"),
    "half a message in a stream": ("StreamEvents", STREAM + STREAM[:-3], "0"),
    "a length of 4 GB in a stream": ("StreamEvents", STREAM + b"\0\xff\xff\xff\xff", "8"),
}


@pytest.mark.parametrize("name", BODIES)
def test_an_odd_body_ends_its_call(service: Service, name: str) -> None:
    method, body, expected = BODIES[name]
    alice = service.caller()

    assert ended(service, alice, method, body) == expected
    assert sum(alice.counts().values()) <= 1
