"""Open loop: requests leave at random times fixed beforehand (Poisson), whatever the server does.

Latency counts from when a request was to leave, so a server, a connection or a generator that falls
behind is charged with it (no coordinated omission). h2load has a timing script for this, but it
drifts: at 500 requests/s it was 0.7 s late after 4 s.
"""

import random
import select
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.http2 import Connection

#: Connections that share the requests; a server allows 100 calls on each.
_CONNECTIONS = 4
#: Seconds without any answer after which a run has failed.
_PATIENCE = 15.0


class NoAnswerError(Exception):
    """The server stopped answering."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoad:
    """What came of it."""

    requests: int
    seconds: float
    #: CPU time of this generator.
    cpu_seconds: float
    #: When it began, in seconds since 1970.
    begun_at: float
    #: When each request was to leave, in seconds from then.
    intended: Sequence[float] = field(repr=False)
    #: Seconds from when a request was to leave until the end of its response.
    latencies: list[float] = field(repr=False)
    #: Seconds by which requests left late.
    lateness: list[float] = field(repr=False)


def send(
    address: str,
    path: str,
    body: bytes,
    *,
    rate: float,
    seconds: float,
    headers: Sequence[str],
    open_streams: bool = False,
) -> OpenLoad:
    """Post a body at `rate` requests a second on average, and await the answers.

    With `open_streams` the body is a message that goes over a few streams in turn; the server
    answers a stream at its end, so the latencies are those of the ends.
    """
    connections = [Connection(address, path, headers) for _ in range(_CONNECTIONS)]
    run = _run_streams if open_streams else _run
    try:
        return run(connections, body, _times(rate, seconds))
    finally:
        for connection in connections:
            connection.close()


def _run_streams(
    connections: Sequence[Connection], message: bytes, times: Sequence[float]
) -> OpenLoad:
    by_socket = {connection.socket: connection for connection in connections}
    streams = {connection: connection.begin() for connection in connections}
    lateness: list[float] = []
    cpu, begun_at, begun = time.thread_time(), time.time(), time.perf_counter()
    for number, at in enumerate(times):
        connection = connections[number % len(connections)]
        while (wait := begun + at - time.perf_counter()) > 0 or (
            connection.room(streams[connection]) < len(message)
        ):
            patience = wait if wait > 0 else _PATIENCE
            readable = select.select(list(by_socket), (), (), patience)[0]
            if not readable and wait <= 0:
                raise NoAnswerError("no room for a message")
            for found in readable:
                by_socket[found].receive()
        lateness.append(time.perf_counter() - begun - at)
        connection.send(streams[connection], message)
    ended_at = time.perf_counter()
    latencies = []
    for connection, stream in streams.items():
        connection.end(stream)
        connection.socket.settimeout(_PATIENCE)
        while stream not in connection.receive():
            pass
        latencies.append(time.perf_counter() - ended_at)
    return OpenLoad(
        requests=len(times),
        seconds=time.perf_counter() - begun,
        cpu_seconds=time.thread_time() - cpu,
        begun_at=begun_at,
        intended=times,
        latencies=latencies,
        lateness=lateness,
    )


def _run(connections: Sequence[Connection], body: bytes, times: Sequence[float]) -> OpenLoad:
    if not all(connection.ready(len(body)) for connection in connections):
        raise NoAnswerError(f"a body of {len(body)} bytes never fits the server's window")
    by_socket = {connection.socket: connection for connection in connections}
    due: dict[tuple[Connection, int], float] = {}
    latencies, lateness = [], []
    cpu, begun_at, begun, sent = time.thread_time(), time.time(), time.perf_counter(), 0
    heard = begun
    while sent < len(times) or due:
        now = time.perf_counter()
        while sent < len(times) and begun + times[sent] <= now:
            connection = connections[sent % len(connections)]
            if not connection.ready(len(body)):
                break
            intended = begun + times[sent]
            due[connection, connection.post(body)] = intended
            lateness.append(now - intended)
            sent += 1
        wait = 0.5
        if sent < len(times) and connections[sent % len(connections)].ready(len(body)):
            wait = max(0.0, begun + times[sent] - time.perf_counter())
        readable = select.select(list(by_socket), (), (), wait)[0]
        for found in readable:
            connection = by_socket[found]
            answered = connection.receive()
            heard = time.perf_counter()
            latencies += [heard - due.pop((connection, stream)) for stream in answered]
            for stream in connection.refused:
                # As every gRPC client does, without telling its caller.
                due[connection, connection.post(body)] = due.pop((connection, stream))
            connection.refused.clear()
        if due and time.perf_counter() - heard > _PATIENCE:
            raise NoAnswerError(f"{len(due)} requests unanswered")
    return OpenLoad(
        requests=sent,
        seconds=time.perf_counter() - begun,
        cpu_seconds=time.thread_time() - cpu,
        begun_at=begun_at,
        intended=times,
        latencies=latencies,
        lateness=lateness,
    )


def _times(rate: float, seconds: float) -> list[float]:
    times, now = [], 0.0
    while (now := now + random.expovariate(rate)) < seconds:  # no secret
        times.append(now)
    return times
