"""Loads in which each event has an idempotency key of its own, as the product's client sends them.

h2load repeats one body. So each stream is an h2load of its own, with a body of its own, and unary
calls leave through the bench's own client: as cheap with 64 in flight (26 us a call, both), and
40 us dearer with one.
"""

import random
import select
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.corpus import Corpus
from benchmarks.frames import SUBMIT, events_body, submit_frame
from benchmarks.h2load import Load, LoadError, post
from benchmarks.http2 import Connection
from ingest.v1.event_pb2 import EventInput

_SEED = 20_240_229
#: Seconds without any answer after which a run has failed.
_PATIENCE = 15.0


class Keys:
    """Keys of the form that the client makes, the same ones each time, none of them twice."""

    def __init__(self) -> None:
        """Begin with the first."""
        self._number = 0
        self._bits = random.Random(_SEED)  # noqa: S311  # the same keys each time

    def give(self, events: Iterable[EventInput]) -> Iterator[EventInput]:
        """Yield a copy of each event, with the next key."""
        for event in events:
            keyed = EventInput()
            keyed.CopyFrom(event)
            self._number += 1
            random_bits = self._bits.getrandbits(62)
            version_7 = self._number << 80 | 0x7 << 76 | 0b10 << 62 | random_bits
            keyed.idempotency_key = str(uuid.UUID(int=version_7))
            yield keyed


def send_streams(
    url: str,
    source: Corpus,
    keys: Keys,
    folder: Path,
    *,
    streams: int,
    share: int,
    per_message: int,
    headers: Sequence[str],
) -> Load:
    """Send so many streams of `share` events at once, each through an h2load of its own.

    They begin within milliseconds of each other; the time is from the first one's start to the last
    one's end.
    """
    places = [folder / f"keyed-{number}" for number in range(streams)]
    for place in places:
        place.mkdir(exist_ok=True)
        events = list(keys.give(source.cycle(share)))
        (place / "body").write_bytes(events_body(events, per_message=per_message))

    def send(place: Path) -> Load:
        return post(url, place / "body", place, requests=1, headers=headers)

    with ThreadPoolExecutor(streams) as pool:
        loads = list(pool.map(send, places))
    timings = sorted(timing for load in loads for timing in load.timings)
    ends = [start / 1e6 + seconds for start, seconds in timings]
    return Load(
        seconds=max(ends) - timings[0][0] / 1e6,
        requests=streams,
        cpu_seconds=sum(load.cpu_seconds for load in loads),
        timings=timings,
    )


def send_unary(
    address: str,
    source: Corpus,
    keys: Keys,
    *,
    calls: int,
    connections: int,
    in_flight: int,
    headers: Sequence[str],
) -> Load:
    """Make so many unary calls in closed loop; `in_flight` is for each connection."""
    bodies = [submit_frame(event) for event in keys.give(source.cycle(calls))]
    opened = [Connection(address, SUBMIT, headers) for _ in range(connections)]
    try:
        return _closed_loop(opened, bodies, in_flight)
    finally:
        for connection in opened:
            connection.close()


def _closed_loop(connections: list[Connection], bodies: Sequence[bytes], most: int) -> Load:
    by_socket = {connection.socket: connection for connection in connections}
    due: dict[tuple[Connection, int], float] = {}
    left, timings = iter(bodies), []
    cpu, begun, begun_at = time.thread_time(), time.perf_counter(), time.time()

    def start(connection: Connection) -> None:
        if body := next(left, None):
            now = time.perf_counter()
            due[connection, connection.post(body)] = now

    for connection in connections * most:
        start(connection)
    while due:
        readable = select.select(list(by_socket), (), (), _PATIENCE)[0]
        for connection in (by_socket[found] for found in readable):
            answered, now = connection.receive(), time.perf_counter()
            for stream in answered:
                started = due.pop((connection, stream))
                timings.append((int((begun_at + started - begun) * 1e6), now - started))
                start(connection)
        if not readable or any(connection.refused for connection in connections):
            raise LoadError(f"{len(due)} calls unanswered or refused unseen")
    return Load(
        seconds=time.perf_counter() - begun,
        requests=len(timings),
        cpu_seconds=time.thread_time() - cpu,
        timings=sorted(timings),
    )
