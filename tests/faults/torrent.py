"""Prepared calls at a fixed rate, on raw HTTP/2 from a process of its own.

A gRPC client in Python takes as much of the machine as the server does. This one takes a tenth, so
that what is late is the server.
"""

import json
import select
import struct
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import grpc

from ingest.v1.ingest_service_pb2 import BatchSubmitEventsRequest
from tests.faults.load import make_event
from tests.faults.trial import Trial
from tests.hostile.frames import (
    DATA,
    END_STREAM,
    HEADERS,
    WINDOW_UPDATE,
    Connection,
    frame,
    message,
)
from tests.kit.caller import Caller
from tests.kit.processes import Process, start_process

_CONNECTIONS = 4
#: Seconds that a torrent takes at most: the long form of row 31 pours for 300.
_LONGEST = 420
#: Calls at a time; the server allows 256 on one connection.
_MOST_OPEN = 200 * _CONNECTIONS
_WINDOW = 65_535
#: gRPC's setting by which error details come as they are, and not in base64.
_TRUE_BINARY = 0xFE03
#: Seconds in which the last answers come.
_PATIENCE = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What a torrent sends: calls a second, each of so many events without a key."""

    port: int
    token: str
    rate: float
    seconds: float
    events: int
    #: Calls at a time; with fewer than the rate asks for, each waits for another's answer.
    most_open: int


@dataclass(slots=True, kw_only=True)
class Torrent:
    """What came of it."""

    calls: int = 0
    taken: int = 0
    #: Of those, how many were answered before the time was up.
    in_time: int = 0
    #: Milliseconds from when a call had left until it was refused.
    refused: list[float] = field(default_factory=list)
    #: Refusals that do not say what they should, or when to come back.
    odd: int = 0
    #: Milliseconds by which calls left late.
    late: list[float] = field(default_factory=list)
    #: Seconds until the last answer, after the time was up.
    drain_seconds: float = 0.0
    cpu_seconds: float = 0.0

    @classmethod
    def of(cls, process: Process) -> Self:
        """Wait for a torrent to end, and read what came of it."""
        try:
            assert process.wait(_LONGEST) == 0, process.output()
        finally:
            process.kill_group()
        return cls(**json.loads(process.stdout().splitlines()[-1]))


def pour(
    trial: Trial,
    port: int,
    *,
    rate: float,
    seconds: float,
    events: int = 1,
    most_open: int = _MOST_OPEN,
) -> Process:
    """Start a torrent against the server on this port, as the user of a trial."""
    course = Course(
        port=port, token=trial.token, rate=rate, seconds=seconds, events=events, most_open=most_open
    )
    folder = trial.folder / f"torrent-{next(trial.numbers)}"
    folder.mkdir()
    return start_process(
        [sys.executable, "-m", "tests.faults.torrent", json.dumps(asdict(course))],
        folder,
        ready=lambda process: process.stdout(),
    )


class _Pipe(Connection):
    """A connection that keeps to the server's window, and notes how calls end."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.window = _WINDOW
        self.sent: dict[int, float] = {}
        self._answered: set[int] = set()
        #: Milliseconds, and the answer's last frame; None for a call that was taken.
        self.ends: list[tuple[float, bytes | None]] = []
        settings = struct.pack(">HI", _TRUE_BINARY, 1)
        room = struct.pack(">I", 1 << 30)
        self._socket.sendall(frame(4, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, room))

    def fileno(self) -> int:
        return self._socket.fileno()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        super()._take(kind, flags, stream, payload)
        if kind == WINDOW_UPDATE and stream == 0:
            self.window += struct.unpack(">I", payload)[0]
        elif kind == DATA:
            self._answered.add(stream)
        elif self._ended.pop(stream, None) is not None:
            took = (time.perf_counter() - self.sent.pop(stream)) * 1000
            good = kind == HEADERS and flags & END_STREAM and stream in self._answered
            self._answered.discard(stream)
            self.ends.append((took, None if good else payload))


def _run(course: Course) -> Torrent:
    caller = Caller(grpc.insecure_channel("127.0.0.1:1"), course.token)
    events = [make_event("torrent") for _ in range(course.events)]
    for event in events:
        event.idempotency_key = ""
    body = message(BatchSubmitEventsRequest(events=events).SerializeToString())
    pipes = [_Pipe(course.port) for _ in range(_CONNECTIONS)]
    result, began, cpu = Torrent(), time.perf_counter(), time.process_time()
    count = int(course.rate * course.seconds)
    give_up = began + course.seconds + _PATIENCE
    while True:
        now = time.perf_counter()
        assert now < give_up, "not answered"
        if now >= began + course.seconds:
            count = min(count, result.calls)
        waiting = sum(len(pipe.sent) for pipe in pipes)
        if result.calls == count and not waiting:
            break
        due = began + result.calls / course.rate
        pipe = min(pipes, key=lambda one: len(one.sent))
        can = result.calls < count and waiting < course.most_open and pipe.window >= len(body)
        if can and due <= now:
            result.late.append((now - due) * 1000)
            stream = pipe.open("BatchSubmitEvents", caller, body, end=True)
            pipe.sent[stream] = time.perf_counter()
            pipe.window -= len(body)
            result.calls += 1
        wait = max(0.0, due - time.perf_counter()) if can else 0.05
        for ready in select.select(pipes, [], [], wait)[0]:
            ready.ended()
            in_time = time.perf_counter() < began + course.seconds
            for took, last in ready.ends:
                _note(result, took, last)
                result.in_time += last is None and in_time
            ready.ends.clear()
    result.drain_seconds = time.perf_counter() - began - course.seconds
    result.cpu_seconds = time.process_time() - cpu
    return result


def _note(result: Torrent, took: float, last: bytes | None) -> None:
    if last is None:
        result.taken += 1
        return
    result.refused.append(took)
    says = b"OVERLOADED" in last or b"RATE_LIMITED" in last
    result.odd += not (says and b"google.rpc.RetryInfo" in last)


def main() -> None:
    """Send what the argument says, and print what came of it."""
    fields: dict[str, Any] = json.loads(sys.argv[1])
    print("started", flush=True)  # noqa: T201
    print(json.dumps(asdict(_run(Course(**fields)))), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
