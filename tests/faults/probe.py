"""An outside look at a server: its health, again and again, as a balancer sees it."""

import threading
import time
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.faults.load import CHANNEL

_PAUSE = 0.05


def health(target: str, timeout: float = 2.0) -> tuple[str, float]:
    """Ask for the whole server's health on a new connection: the answer and its milliseconds."""
    with grpc.insecure_channel(target, options=CHANNEL) as channel:
        began = time.monotonic()
        try:
            grpc.channel_ready_future(channel).result(timeout)
            began = time.monotonic()
            answer = health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]
                health_pb2.HealthCheckRequest(), timeout=timeout
            )
        except grpc.FutureTimeoutError:
            return "UNREACHABLE", (time.monotonic() - began) * 1000
        except grpc.RpcError as error:
            return error.code().name, (time.monotonic() - began) * 1000
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return name, (time.monotonic() - began) * 1000


class Probe:
    """Asks on one open connection, in a thread, from `with` to its end."""

    def __init__(self, target: str) -> None:
        """Connect to a server that is up."""
        self._channel = grpc.insecure_channel(target, options=CHANNEL)
        grpc.channel_ready_future(self._channel).result(5)
        self._stub = health_pb2_grpc.HealthStub(self._channel)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        #: (time, answer, milliseconds)
        self.seen: list[tuple[float, str, float]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopped.set()
        self._thread.join(10)
        self._channel.close()

    def milliseconds(self, after: float, before: float, share: float = 0.9) -> float:
        """Return a quantile of the times between two moments."""
        times = sorted(ms for at, _, ms in self.seen if after <= at < before)
        assert times, "nothing was asked"
        return times[int(len(times) * share)]

    def answers(self, after: float, before: float) -> set[str]:
        """Return every answer between two moments."""
        return {answer for at, answer, _ in self.seen if after <= at < before}

    def _run(self) -> None:
        names = health_pb2.HealthCheckResponse.ServingStatus
        while not self._stopped.wait(_PAUSE):
            began = time.monotonic()
            try:
                answer = self._stub.Check(  # type: ignore[attr-defined]  # a stub's
                    health_pb2.HealthCheckRequest(), timeout=5
                )
                said = names.Name(answer.status)
            except grpc.RpcError as error:
                said = error.code().name
            self.seen.append((began, said, (time.monotonic() - began) * 1000))
