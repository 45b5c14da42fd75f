"""Raw HTTP/2 frames: a client of the service that does what no library would do."""

import re
import select
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from tests.kit.caller import Caller

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
#: Frame types and flags of RFC 9113.
DATA, HEADERS, RST_STREAM, SETTINGS_TYPE, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SIZE = 4
_CANCEL = 8
_HEADER = struct.Struct(">HBBBI")
#: The first time that a connection carries a status it is spelled out, later it is an index.
_STATUS = re.compile(rb"grpc-status[\x01\x02]([0-9]{1,2})")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one frame, however wrong it may be."""
    return _HEADER.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def literal(name: str, value: str) -> bytes:
    r"""Return a header field that leaves the table of the connection alone (RFC 7541, 6.2.2).

    A surrogate such as `\udcff` is the byte that is no UTF-8 (PEP 383).
    """
    return b"".join(
        (b"\0", *(_text(part.encode(errors="surrogateescape")) for part in (name, value)))
    )


def message(wire: bytes, *, compressed: bool = False) -> bytes:
    """Return a message as gRPC puts it into DATA frames."""
    return bytes([compressed]) + struct.pack(">I", len(wire)) + wire


class Connection:
    """One connection, whose streams are opened, fed and left as a test likes."""

    def __init__(
        self, port: int, *, window: int = 65_535, tls: ssl.SSLContext | None = None
    ) -> None:
        """Connect; `window` is how much of each answer the server may send."""
        self._socket = socket.create_connection(("127.0.0.1", port), 10)
        if tls:
            self._socket = tls.wrap_socket(self._socket, server_hostname="127.0.0.1")
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._next = 1
        self._buffer = b""
        self._ended: dict[int, str] = {}
        self._begun: set[int] = set()
        #: Whether the server closed the connection.
        self.is_closed = False
        #: Whether the server's pings are answered, and how many there were.
        self.is_alive = True
        self.pinged = 0
        #: What the server said when it would take no more calls.
        self.goodbyes: list[bytes] = []
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, window)
        try:
            self._socket.sendall(PREFACE + frame(SETTINGS_TYPE, 0, 0, settings))
        except OSError:
            self._socket.close()
            raise

    def open(
        self, method: str, caller: Caller, body: bytes = b"", *, end: bool = False, **fields: str
    ) -> int:
        """Open a call, send bytes of its body, and return its number; `fields` are headers."""
        stream, self._next = self._next, self._next + 2
        named = {
            ":method": "POST",
            ":scheme": "http",
            ":path": f"/ingest.v1.IngestService/{method}",
            ":authority": "localhost",
            "te": "trailers",
            "content-type": "application/grpc",
        }
        named |= {name.replace("_", "-"): value for name, value in fields.items()}
        block = b"".join(literal(*field) for field in (*named.items(), *caller.metadata))
        sent = frame(HEADERS, END_HEADERS, stream, block)
        if body or end:
            sent += frame(DATA, END_STREAM if end else 0, stream, body)
        self._socket.sendall(sent)
        return stream

    def feed(self, stream: int, body: bytes, *, end: bool = False) -> None:
        """Send more bytes of a call."""
        self._socket.sendall(frame(DATA, END_STREAM if end else 0, stream, body))

    def reset(self, stream: int) -> None:
        """Cancel a call."""
        self._socket.sendall(frame(RST_STREAM, 0, stream, struct.pack(">I", _CANCEL)))

    def begun(self) -> set[int]:
        """Look at what has come, without waiting: the calls whose answer is on its way."""
        self.ended()
        return set(self._begun)

    def ended(self) -> dict[int, str]:
        """Look at what has come, without waiting: the calls that have ended, with their status.

        The status is empty where it is not spelled out, and `reset` for a stream that was reset.
        """
        while not self.is_closed and select.select([self._socket], [], [], 0)[0]:
            try:
                received = self._socket.recv(1 << 18)
            except ConnectionResetError:
                received = b""
            self.is_closed = not received
            self._buffer += received
            self._take_frames()
        return dict(self._ended)

    def ping(self) -> None:
        """Ask whether the server is there."""
        self._socket.sendall(frame(PING, 0, 0, bytes(8)))

    def close(self) -> None:
        """Close the connection, whatever is open on it."""
        self._socket.close()

    def _take_frames(self) -> None:
        buffer, position = self._buffer, 0
        while len(buffer) - position >= _HEADER.size:
            high, low, kind, flags, stream = _HEADER.unpack_from(buffer, position)
            end = position + _HEADER.size + (high << 8 | low)
            if end > len(buffer):
                break
            self._take(kind, flags, stream, buffer[position + _HEADER.size : end])
            position = end
        self._buffer = buffer[position:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == PING and not flags & ACK:
            self.pinged += 1
        if kind == GOAWAY:
            self.goodbyes.append(payload[4:])
        elif kind in {SETTINGS_TYPE, PING} and not flags & ACK:
            if not self.is_alive:
                return
            self._socket.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == HEADERS and flags & END_STREAM:
            found = _STATUS.search(payload)
            self._ended[stream] = found[1].decode() if found else ""
        elif kind == HEADERS:
            self._begun.add(stream)
        elif kind == RST_STREAM:
            self._ended.setdefault(stream, "reset")


@contextmanager
def connections(port: int, count: int, *, window: int = 65_535) -> Iterator[list[Connection]]:
    """Open so many connections, and close them at the end."""
    made: list[Connection] = []
    try:
        made += (Connection(port, window=window) for _ in range(count))
        yield made
    finally:
        for connection in made:
            connection.close()


def _text(raw: bytes) -> bytes:
    """Return a string of RFC 7541, section 5.2, without Huffman's code."""
    if len(raw) < 127:
        return bytes([len(raw)]) + raw
    rest, size = len(raw) - 127, b"\x7f"
    while rest >= 128:
        size += bytes([rest & 0x7F | 0x80])
        rest >>= 7
    return size + bytes([rest]) + raw
