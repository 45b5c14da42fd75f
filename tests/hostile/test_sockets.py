"""Connections that speak something else, or nothing: closed or ignored, and the service stays."""

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.kit.server import Service

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
#: The first bytes of a TLS 1.2 hello.
HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(193)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    length = struct.pack("!I", len(payload))[1:]
    return length + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def headers_and_reset(count: int) -> bytes:
    """Streams that are opened and reset at once (CVE-2023-44487)."""
    block = b"\x83\x86\x44\x01/"  # POST http /
    return b"".join(
        frame(1, 4, 2 * number + 1, block) + frame(3, 0, 2 * number + 1, b"\0\0\0\x08")
        for number in range(count)
    )


OPEN = PREFACE + SETTINGS + frame(1, 1, 1, b"\x83\x86\x44\x01/")
SPOKEN = {
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "HTTP/1.1 upgrade": b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    "TLS hello": HELLO,
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "random bytes": os.urandom(2_000),
    "zeros": bytes(5_000),
    "half a preface": PREFACE[:10],
    "preface and random": PREFACE + os.urandom(1_000),
    "frame beyond its limit": PREFACE + SETTINGS + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    "data on stream 0": PREFACE + SETTINGS + frame(0, 1, 0, b"x"),
    "even stream": PREFACE + SETTINGS + frame(1, 5, 2, b"\x83"),
    "settings with payload of 5": PREFACE + frame(4, 0, 0, b"12345"),
    "window update of 0": PREFACE + SETTINGS + frame(8, 0, 0, bytes(4)),
    "window overflow": PREFACE + SETTINGS + frame(8, 0, 0, b"\x7f\xff\xff\xff") * 2,
    "bad HPACK": PREFACE + SETTINGS + frame(1, 5, 1, b"\xff" * 50),
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


def test_silent_connections_cost_nobody_anything(service: Service) -> None:
    silent = [socket.create_connection(("127.0.0.1", service.port), 5) for _ in range(200)]
    try:
        started = time.monotonic()
        assert service.caller().is_served()
        assert time.monotonic() - started < 2
    finally:
        for made in silent:
            made.close()


def rss(service: Service) -> int:
    with open(f"/proc/{service.process.pid}/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * 4_096
