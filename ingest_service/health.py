"""Health (grpc.health.v1): readiness follows the database; a busy server is not a dead one."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

log = structlog.get_logger()

#: The service whose readiness is told; the empty name means the whole server, and is the same.
SERVICES = ("", "ingest.v1.IngestService")
#: SERVING as long as the process answers at all: for a liveness probe, which would otherwise
#: restart a healthy server because its database is away.
LIVENESS = "liveness"
#: Open calls of Watch in a process, some 20 kB each: anybody may make them, and none ever ends.
MOST_WATCHERS = 1_000
#: Seconds between two looks at the database.
_PAUSE = 1.0
#: Seconds in which the database must answer; a look that takes longer says no.
_PATIENCE = 2.0

Check = Callable[[], Awaitable[bool]]
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Statuses(health_pb2_grpc.HealthServicer):
    """Answers and tells what it was told last, and waits for no watcher.

    grpcio-health-checking writes under the lock that a change needs: one watcher who reads nothing
    would keep the status as it is, and the server from its end.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        self._known: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._watchers = 0

    def set(self, service: str, status: int) -> None:
        """Change the status of a service."""
        self._known[service] = status
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(  # noqa: N802  # the names of calls are those of the contract
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Answer the status."""
        if request.service not in self._known:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return health_pb2.HealthCheckResponse(status=self._known[request.service])

    async def List(self, request: object, context: Context) -> Any:  # noqa: N802
        """Answer every status."""
        return health_pb2.HealthListResponse(  # type: ignore[attr-defined]  # not in the stubs yet
            statuses={
                service: health_pb2.HealthCheckResponse(status=status)
                for service, status in self._known.items()
            }
        )

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> None:
        """Tell the status, and each other one that follows, until the caller leaves."""
        if self._watchers >= MOST_WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watchers of health")
        self._watchers += 1
        try:
            await self._tell(request.service, context)
        finally:
            self._watchers -= 1

    async def _tell(self, service: str, context: Context) -> None:
        told: int | None = None
        while True:
            changed = self._changed
            status = self._known.get(service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            await changed.wait()


class Health:
    """Keeps the health servicer up to date."""

    def __init__(self, check: Check) -> None:
        """Take the check, which says whether the database answers; it may also raise."""
        self.servicer = Statuses()
        self._check = check
        self._ready: bool | None = None
        self._is_stopped = False

    async def run(self) -> None:
        """Look at the database again and again, until cancelled."""
        self.servicer.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        while True:
            await self.look()
            await asyncio.sleep(_PAUSE)

    async def look(self) -> None:
        """Look at the database once and tell the servicer."""
        try:
            async with asyncio.timeout(_PATIENCE):
                ready = await self._check()
        except Exception as error:  # noqa: BLE001  # whatever it is, the answer is no
            log.debug("health_check_failed", error=type(error).__name__)
            ready = False
        if not self._is_stopped:
            self._tell(ready=ready)

    async def stop(self) -> None:
        """Say that this server is not ready from now on, for good; it is alive to its end."""
        self._is_stopped = True
        self._tell(ready=False)

    def _tell(self, *, ready: bool) -> None:
        if ready is self._ready:
            return
        self._ready = ready
        log.info("readiness_changed", ready=ready)
        serving = health_pb2.HealthCheckResponse
        for service in SERVICES:
            self.servicer.set(service, serving.SERVING if ready else serving.NOT_SERVING)
