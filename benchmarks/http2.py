"""Just enough HTTP/2 to post prepared bodies at given times: far cheaper than a gRPC client.

It keeps to the server's limits (streams, both flow-control windows) and reads no header: what was
stored is counted in the database.
"""

import socket
import struct
from collections.abc import Sequence

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_REFUSED_STREAM = struct.pack(">I", 7)
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE = 3, 4
_FRAME_BYTES = 16_384
_DEFAULT_WINDOW = 65_535
#: What the server may send before it hears from us again.
_OUR_WINDOW = 1 << 30
_HEADER = struct.Struct(">HBBBI")


class StreamReset(Exception):
    """The server refused a call on the HTTP/2 level."""


class Connection:
    """One plaintext connection, on which every request has the same headers."""

    def __init__(self, address: str, path: str, headers: Sequence[str]) -> None:
        """Connect, and prepare the header bytes of a request."""
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        named = [(name, value) for name, _, value in (line.partition(": ") for line in headers)]
        fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", host)]
        self._first, self._next = _hpack([*fields, *named])
        self._stream = 1
        self._open: set[int] = set()
        self._most_streams = 100
        self._window = _DEFAULT_WINDOW
        self._stream_window = _DEFAULT_WINDOW
        #: Of the streams whose bodies are sent piece by piece.
        self._windows: dict[int, int] = {}
        self._received = b""
        #: Bytes of all answers; a call that is refused by its status alone brings none.
        self.answered_bytes = 0
        #: Streams that the server refused unseen (RFC 9113, section 8.7): to be sent again.
        self.refused: list[int] = []
        self.socket.sendall(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, _OUR_WINDOW))
            + _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _OUR_WINDOW))
        )
        while not self._received_settings:
            self.receive()

    _received_settings = False

    def ready(self, size: int) -> bool:
        """Whether the server's limits allow another request with a body of so many bytes now."""
        room = min(self._window, self._stream_window)
        return len(self._open) < self._most_streams and room >= size

    def post(self, body: bytes) -> int:
        """Send a request; returns the number of its stream."""
        stream, headers = self._new_stream()
        self.socket.sendall(headers + _data(stream, body, end=True))
        self._window -= len(body)
        return stream

    def begin(self) -> int:
        """Begin a request whose body is sent piece by piece; returns the number of its stream."""
        stream, headers = self._new_stream()
        self.socket.sendall(headers)
        self._windows[stream] = self._stream_window
        return stream

    def room(self, stream: int) -> int:
        """Return how many bytes of that body the server's limits allow now."""
        return min(self._window, self._windows[stream])

    def send(self, stream: int, piece: bytes) -> None:
        """Send a piece of a body that was begun."""
        self.socket.sendall(_data(stream, piece, end=False))
        self._window -= len(piece)
        self._windows[stream] -= len(piece)

    def end(self, stream: int) -> None:
        """End a body that was begun."""
        self.socket.sendall(_frame(_DATA, _END_STREAM, stream, b""))

    def _new_stream(self) -> tuple[int, bytes]:
        """Take the next stream; returns its number and the frame that opens it."""
        stream, self._stream = self._stream, self._stream + 2
        self._open.add(stream)
        block = self._first if stream == 1 else self._next
        return stream, _frame(_HEADERS, _END_HEADERS, stream, block)

    def receive(self) -> list[int]:
        """Wait for bytes of the server; returns the streams that are answered in full."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise StreamReset("the server closed the connection")
        buffer, position, ended = self._received + data, 0, []
        while len(buffer) - position >= 9:
            high, low, kind, flags, stream = _HEADER.unpack_from(buffer, position)
            end = position + 9 + (high << 8 | low)
            if end > len(buffer):
                break
            if kind in {_DATA, _HEADERS}:
                self.answered_bytes += end - position - 9 if kind == _DATA else 0
                if flags & _END_STREAM:
                    self._open.discard(stream)
                    ended.append(stream)
            elif kind == _RST_STREAM and buffer[position + 9 : end] == _REFUSED_STREAM:
                self._open.discard(stream)
                self.refused.append(stream)
            else:
                self._control(kind, flags, stream, buffer[position + 9 : end])
            position = end
        self._received = buffer[position:]
        return ended

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _WINDOW_UPDATE:
            (more,) = struct.unpack(">I", payload)
            if stream == 0:
                self._window += more
            elif stream in self._windows:
                # Those of other streams come too late to matter: a body is sent as a whole.
                self._windows[stream] += more
        elif kind == _SETTINGS and not flags & _ACK:
            self._settings(payload)
        elif kind == _PING and not flags & _ACK:
            self.socket.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind in {_RST_STREAM, _GOAWAY}:
            raise StreamReset(f"frame type {kind}: {payload!r}")

    def _settings(self, payload: bytes) -> None:
        self._received_settings = True
        for name, value in struct.iter_unpack(">HI", payload):
            if name == _MAX_CONCURRENT_STREAMS:
                # A server forgets a call a little later than it has answered it.
                self._most_streams = value * 3 // 4
            elif name == _INITIAL_WINDOW_SIZE:
                for begun in self._windows:
                    self._windows[begun] += value - self._stream_window
                self._stream_window = value
        self.socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _HEADER.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def _data(stream: int, body: bytes, *, end: bool) -> bytes:
    parts = []
    for start in range(0, len(body), _FRAME_BYTES):
        piece = body[start : start + _FRAME_BYTES]
        last = start + len(piece) == len(body)
        parts.append(_frame(_DATA, _END_STREAM if end and last else 0, stream, piece))
    return b"".join(parts)


def _hpack(fields: Sequence[tuple[str, str]]) -> tuple[bytes, bytes]:
    """Return the header block of the first request, which fills the table, and of all others."""
    first = b"".join(b"\x40" + _text(name) + _text(value) for name, value in fields)
    # The newest entry of the dynamic table has index 62 (RFC 7541, section 2.3.3).
    return first, bytes(0x80 | (61 + len(fields) - position) for position in range(len(fields)))


def _text(text: str) -> bytes:
    raw = text.encode()
    length, size = len(raw), b""
    if length < 127:
        return bytes([length]) + raw
    length -= 127
    size = b"\x7f"
    while length >= 128:
        size += bytes([length & 0x7F | 0x80])
        length >>= 7
    return size + bytes([length]) + raw
