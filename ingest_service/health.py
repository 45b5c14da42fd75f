"""Health (grpc.health.v1): readiness follows the database; a busy server is not a dead one."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

log = structlog.get_logger()

#: The service whose readiness is told; the empty name means the whole server, and is the same.
SERVICES = ("", "ingest.v1.IngestService")
#: SERVING as long as the process answers at all: for a liveness probe, which would otherwise
#: restart a healthy server because its database is away.
LIVENESS = "liveness"
#: Seconds between two looks at the database.
_PAUSE = 1.0
#: Seconds in which the database must answer; a look that takes longer says no.
_PATIENCE = 2.0

Check = Callable[[], Awaitable[bool]]


class Health:
    """Keeps the health servicer up to date."""

    def __init__(self, check: Check) -> None:
        """Take the check, which says whether the database answers; it may also raise."""
        self.servicer = HealthServicer()
        self._check = check
        self._ready: bool | None = None
        self._is_stopped = False

    async def run(self) -> None:
        """Look at the database again and again, until cancelled."""
        await self.servicer.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
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
            await self._tell(ready=ready)

    async def stop(self) -> None:
        """Say that this server is not ready from now on, for good; it is alive to its end."""
        self._is_stopped = True
        await self._tell(ready=False)

    async def _tell(self, *, ready: bool) -> None:
        if ready is self._ready:
            return
        self._ready = ready
        log.info("readiness_changed", ready=ready)
        serving = health_pb2.HealthCheckResponse
        for service in SERVICES:
            await self.servicer.set(service, serving.SERVING if ready else serving.NOT_SERVING)
