"""Runs what would block the event loop in a small, bounded set of threads."""

import asyncio
from collections import Counter
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
        #: Of one user half of it may wait, so that others find room.
        self._most_of_one = max(1, self._free // 2)
        self._waiting: Counter[str] = Counter()
        self._turns: dict[str, asyncio.Lock] = {}

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in a thread; raises Overloaded when too many wait, and what it raises."""
        if self._free == 0:
            raise Overloaded
        self._free -= 1
        return await asyncio.shield(self._start(lambda: function(*args, **kwargs)))

    async def run_for(
        self, user_id: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Do the same for a user, one call after the other, so that users take turns.

        Raises Overloaded as well when too many of this user wait.
        """
        if self._free == 0 or self._waiting[user_id] >= self._most_of_one:
            raise Overloaded
        self._free -= 1
        self._waiting[user_id] += 1
        turn = self._turns.setdefault(user_id, asyncio.Lock())
        try:
            await turn.acquire()
        except asyncio.CancelledError:
            self._free += 1
            self._leave(user_id)
            raise
        future = self._start(lambda: function(*args, **kwargs))
        future.add_done_callback(lambda _future: turn.release())
        future.add_done_callback(lambda _future: self._leave(user_id))
        return await asyncio.shield(future)

    def close(self) -> None:
        """Let running calls end and take no more."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _start(self, function: Callable[[], T]) -> "asyncio.Future[T]":
        future = asyncio.get_running_loop().run_in_executor(self._executor, function)
        # Counted when the thread is done, not when the caller is: it may leave early.
        future.add_done_callback(self._release)
        return future

    def _release(self, future: "asyncio.Future[T]") -> None:
        self._free += 1
        if not future.cancelled():
            # Whoever left early does not look at it.
            future.exception()

    def _leave(self, user_id: str) -> None:
        self._waiting[user_id] -= 1
        if not self._waiting[user_id]:
            del self._waiting[user_id], self._turns[user_id]
