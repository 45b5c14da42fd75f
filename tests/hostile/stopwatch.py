"""How long refusals take, from the client's side, and what that says about the server.

Timed from when the caller has begun the call, so the client's own work is in it, too.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.kit.server import Service

#: Seconds in which each refusal is there, and in which half of them are.
_SLOWEST = 0.2
_USUAL = 0.05
#: Seconds more for each byte of the request: half a second for each megabyte.
_EACH_BYTE = 5e-7
_DETAILS = "grpc-status-details-bin"
#: Fewer than these have no usual time.
_FEWEST = 20


class Stopwatch(grpc.UnaryUnaryClientInterceptor):
    """Times every unary call that the service refuses.

    What gRPC's core refuses has no details and is not judged: metadata and messages beyond the
    limits, which this process is busy packing for longer than the server is with them.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        """Take the bare channel, for good calls that tell how slow the machine itself is."""
        self.took: list[float] = []
        #: What was slow twice: method, status, its seconds, and those of a good call beside it.
        self.slow: list[str] = []
        self._check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]

    def intercept_unary_unary(
        self, continuation: Callable[..., Any], details: grpc.ClientCallDetails, request: Any
    ) -> Any:
        """Time a call; a slow one is made once more, because two cores may be busy elsewhere.

        Only what is refused is made again, which stores nothing. A good call right after each of
        them says what this machine adds to any call at that moment.
        """
        answer, took = self._timed(continuation, details, request)
        if took is None:
            return answer
        size = len(request) if isinstance(request, bytes) else request.ByteSize()
        most = _SLOWEST + size * _EACH_BYTE
        if took > most and took > most + self._plain():
            first = took
            answer, took = self._timed(continuation, details, request)
            assert took is not None, "refused, and then not"
            if took > most + (plain := self._plain()):
                self.slow.append(f"{details.method}: {first:.3f}, {took:.3f}; good {plain:.3f} s")
        self.took.append(took)
        return answer

    def _timed(self, call: Callable[..., Any], *args: Any) -> tuple[Any, float | None]:
        began = time.monotonic()
        answer = call(*args)
        took = time.monotonic() - began
        # The one that is being made in the background cannot be timed here.
        is_ours = answer.done() and _DETAILS in dict(answer.trailing_metadata() or ())
        return answer, took if is_ours else None

    def _plain(self) -> float:
        began = time.monotonic()
        self._check(health_pb2.HealthCheckRequest(), timeout=20)
        return time.monotonic() - began


@contextmanager
def answering_promptly(service: Service) -> Iterator[None]:
    """Have every refusal of a unary call come in time."""
    bare = service.channel
    watch = Stopwatch(bare)
    service.channel = grpc.intercept_channel(bare, watch)
    try:
        yield
    finally:
        service.channel = bare
    assert not watch.slow, watch.slow
    usual = median(watch.took) if len(watch.took) >= _FEWEST else 0.0
    assert usual <= _USUAL, f"half of {len(watch.took)} refusals took {usual:.3f} s or longer"
