"""A TCP proxy in user space that spoils connections the way networks and servers do.

It forwards bytes between loopback ports and can delay, stall, cut or refuse them, lose replies, and
spring a trap when a certain request passes: before it is forwarded, or after it has taken effect.
"""

import asyncio
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from enum import Enum, auto

_PIECE = 65_536
#: Pieces under way in one direction of one connection; more is back-pressure, as on a real line.
_PIECES = 64
#: SO_LINGER of zero seconds: closing sends RST, as a process does that dies with unread input.
_RESET = struct.pack("ii", 1, 0)


class Point(Enum):
    """Where a trap holds a request."""

    #: The request is not forwarded.
    BEFORE = auto()
    #: The request is forwarded up to the pattern, and not to its end.
    WITHIN = auto()
    #: The request is forwarded and took effect; its reply is not delivered.
    AFTER = auto()


class Trap:
    """Holds the first request that contains a pattern, until the test decides."""

    def __init__(self, proxy: "Proxy", pattern: bytes, point: Point, first: bytes) -> None:
        self.point = point
        self._proxy = proxy
        self.pattern = pattern
        self._first = first
        self._armed: set[int] = set()
        self._sprung = threading.Event()
        self._decided = asyncio.Event()
        self._taken = False
        self.cuts = False

    def wait(self, timeout: float = 15.0) -> None:
        """Wait until a request is held; raises AssertionError when none comes."""
        assert self._sprung.wait(timeout), f"no request with {self.pattern!r} in {timeout} s"

    @property
    def sprung(self) -> bool:
        """Whether a request is or was held."""
        return self._sprung.is_set()

    def release(self) -> None:
        """Forward what is held, and let everything else pass."""
        self._decide(cuts=False)

    def cut(self) -> None:
        """Throw away what is held and reset its connection."""
        self._decide(cuts=True)

    def _decide(self, *, cuts: bool) -> None:
        self._taken = True
        self.cuts = cuts
        self._proxy.on_loop(self._decided.set)

    def takes(self, connection: "_Connection", piece: bytes) -> bool:
        """Whether this request is the one; asked on the proxy's loop."""
        if self._taken:
            return False
        if self._first and id(connection) not in self._armed:
            if self._first in piece:
                self._armed.add(id(connection))
            return False
        if self.pattern not in piece:
            return False
        self._taken = True
        return True

    async def hold(self) -> bool:
        """Report the catch, wait for the decision, and return whether to go on."""
        self._sprung.set()
        await self._decided.wait()
        return not self.cuts


class Watch(Trap):
    """Notes each request that contains a pattern, and holds none."""

    def __init__(self, proxy: "Proxy", pattern: bytes) -> None:
        super().__init__(proxy, pattern, Point.BEFORE, b"")
        #: When each passed, and since when its connection is there: of CLOCK_MONOTONIC.
        self.seen: list[tuple[float, float]] = []

    def takes(self, connection: "_Connection", piece: bytes) -> bool:
        """Note the request if it is one; it is never taken."""
        if self.pattern in piece:
            self.seen.append((time.monotonic(), connection.since))
        return False


class _Connection:
    """The two ends of one forwarded connection."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.since = time.monotonic()
        self.trap: Trap | None = None

    def reset(self) -> None:
        for writer in (self.client, self.server):
            raw: socket.socket | None = writer.get_extra_info("socket")
            if raw is not None and raw.fileno() >= 0:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class Proxy:
    """Forwards one loopback port to another; every switch may be turned from any thread."""

    def __init__(
        self, target_port: int, *, seed: int = 0, listener: socket.socket | None = None
    ) -> None:
        """Start at once, on a port of its own, or with a listener that is somewhere else."""
        self.target_port = target_port
        #: Seconds that each piece is late, in each direction.
        self.latency = 0.0
        #: Bytes per second in each direction; 0 is no limit.
        self.bandwidth = 0
        #: Share of replies that vanish while the connection stays.
        self.lost_replies = 0.0
        self._random = random.Random(seed)  # noqa: S311  # repeatable, no secret
        listener = listener or socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._traps: list[Trap] = []
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._run, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()
        self._wait(self._listen(listener))

    def stall(self) -> None:
        """Take connections and bytes and pass nothing on: a half-open line, no FIN, no RST."""
        self.on_loop(self._flowing.clear)

    def resume(self) -> None:
        """End a stall; what was held flows on."""
        self.on_loop(self._flowing.set)

    def cut(self) -> None:
        """Reset every connection; new ones are taken."""
        self._wait(self._cut())

    def refuse(self) -> None:
        """Reset every connection and refuse new ones."""
        self._wait(self._close_listener())
        self.cut()

    def accept(self) -> None:
        """Take connections again after `refuse`, on the same port."""
        if self._server is None:
            self._wait(self._listen(socket.create_server(("127.0.0.1", self.port), backlog=256)))

    def trap(self, pattern: bytes, point: Point, *, first: bytes = b"") -> Trap:
        """Set a trap for the first request from now on that contains `pattern`.

        With `first` only a connection counts that has sent this before, in an earlier request.
        """
        trap = Trap(self, pattern, point, first)
        self._traps.append(trap)
        return trap

    def watch(self, pattern: bytes) -> Watch:
        """Note every request from now on that contains `pattern`, until `heal`."""
        watch = Watch(self, pattern)
        self._traps.append(watch)
        return watch

    def heal(self) -> None:
        """Take every switch back, release every trap."""
        self.accept()
        self.latency = self.lost_replies = 0.0
        self.bandwidth = 0
        traps, self._traps = self._traps, []
        for trap in traps:
            trap.release()
        self.resume()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def close(self) -> None:
        """End the proxy and every connection."""
        self.heal()
        self.refuse()
        self.on_loop(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def on_loop(self, action: Callable[[], object]) -> None:
        """Run something on the proxy's loop, soon."""
        self._loop.call_soon_threadsafe(action)

    def _wait(self, coroutine: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))

    async def _listen(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_server(self._serve, sock=listener)

    async def _close_listener(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _cut(self) -> None:
        for connection in list(self._connections):
            connection.reset()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        connection: _Connection | None = None
        try:
            await self._flowing.wait()
            answers, requests = await asyncio.open_connection("127.0.0.1", self.target_port)
            connection = _Connection(writer, requests)
            self._connections.add(connection)
            pumps = [
                asyncio.create_task(self._pump(connection, reader, requests, self._request)),
                asyncio.create_task(self._pump(connection, answers, writer, self._reply)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
                with suppress(OSError):
                    requests.close()
        except (OSError, asyncio.CancelledError):
            pass  # nobody listens behind the proxy, or it closes: the client sees the end
        finally:
            if connection is not None:
                self._connections.discard(connection)
            self._tasks.discard(task)
            with suppress(OSError):
                writer.close()

    async def _pump(
        self,
        connection: _Connection,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        inspect: Callable[[_Connection, bytes, asyncio.StreamWriter], Coroutine[None, None, bytes]],
    ) -> None:
        """Forward one direction until it ends; each piece is late by the latency of its arrival."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES)

        async def deliver() -> None:
            while True:
                due, piece = await line.get()
                if (wait := due - self._loop.time()) > 0:
                    await asyncio.sleep(wait)
                await self._flowing.wait()
                if not piece:
                    return
                sink.write(await inspect(connection, piece, sink))
                await sink.drain()
                if self.bandwidth:
                    await asyncio.sleep(len(piece) / self.bandwidth)

        delivery = asyncio.create_task(deliver())
        try:
            piece = b"begin"
            while piece:
                try:
                    piece = await source.read(_PIECE)
                except OSError:
                    piece = b""
                await line.put((self._loop.time() + self.latency, piece))
            await delivery
        except OSError:
            pass
        finally:
            delivery.cancel()

    async def _request(
        self, connection: _Connection, piece: bytes, sink: asyncio.StreamWriter
    ) -> bytes:
        trap = next((trap for trap in self._traps if trap.takes(connection, piece)), None)
        if trap is None:
            return piece
        if trap.point is Point.AFTER:
            connection.trap = trap
            return piece
        if trap.point is Point.WITHIN:
            begin = piece.index(trap.pattern)
            sink.write(piece[:begin])
            piece = piece[begin:]
        if not await trap.hold():
            connection.reset()
            return b""
        return piece

    async def _reply(
        self, connection: _Connection, piece: bytes, _sink: asyncio.StreamWriter
    ) -> bytes:
        trap, connection.trap = connection.trap, None
        if trap is not None and not await trap.hold():
            connection.reset()
            return b""
        if self.lost_replies and self._random.random() < self.lost_replies:
            return b""
        return piece
