"""Runs what would block the event loop in a small, bounded set of threads."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from ingest_service.errors import Overloaded

P = ParamSpec("P")
T = TypeVar("T")


class Offload:
    """Some threads, and how much may wait for them."""

    def __init__(self, name: str, *, threads: int, waiting: int) -> None:
        """Take the number of threads, and of calls that each may have waiting."""
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._free = threads * waiting

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in a thread; raises Overloaded when too many wait, and what it raises."""
        if self._free == 0:
            raise Overloaded
        self._free -= 1
        loop = asyncio.get_running_loop()
        # Counted when the thread is done, not when the caller is: it may leave early.
        future = loop.run_in_executor(self._executor, lambda: function(*args, **kwargs))
        future.add_done_callback(self._release)
        return await asyncio.shield(future)

    def close(self) -> None:
        """Let running calls end and take no more."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _release(self, future: "asyncio.Future[T]") -> None:
        self._free += 1
        if not future.cancelled():
            # Whoever left early does not look at it.
            future.exception()
