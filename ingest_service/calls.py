"""The calls that are open, so that a server can end when there are none."""

import asyncio

from ingest_service.errors import Draining


class OpenCalls:
    """Counts calls, and refuses new ones when the server is about to end.

    gRPC's own `stop` may return while handlers still run, and cancels what arrives at that moment
    in place of refusing it.
    """

    def __init__(self) -> None:
        """Start with none."""
        self._count = 0
        self._is_draining = False
        self._changed = asyncio.Event()

    def check(self) -> None:
        """Raise Draining when no new call is taken."""
        if self._is_draining:
            raise Draining

    def enter(self) -> None:
        """Count a call that begins."""
        self._count += 1

    def leave(self) -> None:
        """Count a call that ended."""
        self._count -= 1
        if not self._count:
            self._changed.set()

    async def drain(self, seconds: float) -> None:
        """Take no new calls, and wait until the open ones ended, `seconds` at most."""
        self._is_draining = True
        try:
            async with asyncio.timeout(seconds):
                while self._count:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return
