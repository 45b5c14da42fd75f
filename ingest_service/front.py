"""The gRPC server, and another one in its place when it ends by itself; knows no service.

grpcio 1.85 ends for good when a call's `:path` is not UTF-8, which anybody may send.
"""

import asyncio
from collections.abc import Callable
from typing import NoReturn

import grpc
import structlog

from eventstore.settings import SettingsError
from ingest_service.errors import ServerLost
from ingest_service.tally import Tally

log = structlog.get_logger()

#: Seconds between two looks whether the server is there. gRPC tells it in no other way: waiting
#: for its end lasts until all of its calls ended, and who ended it may keep one open.
_PAUSE = 0.05
#: Seconds which the calls of a server that ended by itself have to come to their end.
_GRACE = 5.0
#: How often its address is tried, a look's pause after another; it is free at once.
_ATTEMPTS = 20


class Front:
    """What listens: one gRPC server at a time, and what is left of those before it."""

    def __init__(self, build: Callable[[str], tuple[grpc.aio.Server, int]], listen: str) -> None:
        """Take what builds a server that is bound to an address, and the address.

        Raises SettingsError when it cannot bind.
        """
        self._build = build
        self._server, self.port = build(listen)
        host, _, port = listen.rpartition(":")
        self._listen = f"{host}:{self.port}" if port == "0" else listen
        self._ending: dict[grpc.aio.Server, asyncio.Task[None]] = {}
        self._hurried: set[grpc.aio.Server] = set()
        self._tally = Tally("warning")

    async def start(self) -> None:
        """Take calls."""
        await self._server.start()

    async def keep(self) -> NoReturn:
        """Replace each server that ends by itself, until cancelled.

        Its open calls go on for a while, or until the next one ends; its connections are told to
        close, as in a drain. Raises ServerLost when the address cannot be had again.
        """
        while True:
            cause = await self._cause_of_end()
            self._let_end(self._server)
            await self._replace()
            self._tally.note("grpc_server_replaced", cause=cause)

    async def stop(self, seconds: float) -> None:
        """Take no more calls, and end those that are open after so many seconds."""
        for ending in self._ending.values():
            ending.cancel()
        servers = {self._server, *self._ending}
        endings = (_end(server, seconds) for server in servers)
        # One that was about to be gone when its end was cancelled says that it was cancelled.
        await asyncio.gather(*endings, return_exceptions=True)

    async def _cause_of_end(self) -> str:
        try:
            while await self._server.wait_for_termination(_PAUSE):
                pass
        except Exception as error:  # noqa: BLE001  # whatever it was, nobody listens any more
            return type(error).__name__
        return "none"

    def _let_end(self, server: grpc.aio.Server) -> None:
        # Connections are of two servers at most: the open calls of one before it end at once.
        for before in [one for one in self._ending if one not in self._hurried]:
            self._hurried.add(before)
            self._ending.pop(before).cancel()
            self._begin_end(before, 0)
        self._begin_end(server, _GRACE)

    def _begin_end(self, server: grpc.aio.Server, seconds: float) -> None:
        def forget(ended: asyncio.Task[None]) -> None:
            if self._ending.get(server) is ended:
                del self._ending[server]
                self._hurried.discard(server)

        self._ending[server] = asyncio.create_task(_end(server, seconds))
        self._ending[server].add_done_callback(forget)

    async def _replace(self) -> None:
        for _ in range(_ATTEMPTS):
            try:
                self._server, _ = self._build(self._listen)
            except SettingsError:
                await asyncio.sleep(_PAUSE)  # somebody else may have the address for a moment
            else:
                await self._server.start()
                return
        log.critical("grpc_server_lost", listen=self._listen)
        raise ServerLost


async def _end(server: grpc.aio.Server, seconds: float) -> None:
    try:
        await server.stop(seconds)
    except UnicodeDecodeError:
        # What ended it by itself is raised once; the next time it is stopped indeed.
        await server.stop(seconds)
