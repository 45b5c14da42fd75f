"""Answers queries in threads, and bounds how long a caller waits."""

import asyncio
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import structlog
from sqlalchemy import Connection, Engine

from eventstore.errors import StorageError, storage_errors
from ingest_service.errors import StorageUnavailable
from ingest_service.offload import Offload

log = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")

#: Reads that may wait for each thread; more would only make all of them late.
_WAITING_PER_THREAD = 64
#: Seconds that a caller waits in all, in the queue and for the database.
_LONGEST_WAIT = 6.0


class Reader:
    """Answers queries without blocking the event loop."""

    def __init__(self, engine: Engine, *, threads: int) -> None:
        """Take an engine whose pool has a connection for each thread."""
        self._engine = engine
        self._threads = Offload("reader", threads=threads, waiting=_WAITING_PER_THREAD)

    async def read(
        self,
        user_id: str,
        query: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run `query(connection, ...)` in a thread, for this user.

        Raises Overloaded when too many wait already, StorageUnavailable when the database does
        not answer.
        """
        try:
            async with asyncio.timeout(_LONGEST_WAIT):
                return await self._threads.run(user_id, lambda: self._run(query, *args, **kwargs))
        except TimeoutError:
            log.warning("storage_unavailable", error="no answer in time")
            raise StorageUnavailable from None
        except StorageError as error:
            log.warning("storage_unavailable", error=str(error))
            raise StorageUnavailable from error

    def close(self) -> None:
        """Let running reads end and take no more."""
        self._threads.close()

    def _run(
        self,
        query: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        with storage_errors(), self._engine.connect() as connection:
            # Each statement has its own snapshot, and a reader can live with that; a transaction
            # would cost two more round trips.
            connection.execution_options(isolation_level="AUTOCOMMIT")
            return query(connection, *args, **kwargs)
