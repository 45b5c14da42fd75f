"""Runs blocking reads in a small, bounded set of threads."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar

import structlog
from sqlalchemy import Connection, Engine

from eventstore.errors import StorageError, storage_errors
from ingest_service.errors import Overloaded, StorageUnavailable

log = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")

#: Reads that may wait for each thread; more would only make all of them late.
_WAITING_PER_THREAD = 32
#: Seconds that a caller waits in all, in the queue and for the database.
_LONGEST_WAIT = 6.0


class Reader:
    """Answers queries without blocking the event loop."""

    def __init__(self, engine: Engine, *, threads: int) -> None:
        """Take an engine whose pool has a connection for each thread."""
        self._engine = engine
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="reader")
        self._free = threads * _WAITING_PER_THREAD

    async def read(
        self,
        query: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run `query(connection, ...)` in a thread.

        Raises Overloaded when too many wait already, StorageUnavailable when the database does
        not answer.
        """
        if self._free == 0:
            raise Overloaded
        self._free -= 1
        loop = asyncio.get_running_loop()
        # Counted when the thread is done, not when the caller is: it may leave early.
        future = loop.run_in_executor(self._executor, lambda: self._run(query, *args, **kwargs))
        future.add_done_callback(self._release)
        try:
            async with asyncio.timeout(_LONGEST_WAIT):
                return await asyncio.shield(future)
        except TimeoutError:
            log.warning("storage_unavailable", error="no answer in time")
            raise StorageUnavailable from None
        except StorageError as error:
            log.warning("storage_unavailable", error=str(error))
            raise StorageUnavailable from error

    def close(self) -> None:
        """Let running reads end and take no more."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _run(
        self,
        query: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        with storage_errors(), self._engine.connect() as connection:
            # One statement reads one snapshot: no transaction is needed, nor its round trips.
            connection.execution_options(isolation_level="AUTOCOMMIT")
            return query(connection, *args, **kwargs)

    def _release(self, future: "asyncio.Future[T]") -> None:
        self._free += 1
        if not future.cancelled():
            # Whoever left early does not look at it.
            future.exception()
