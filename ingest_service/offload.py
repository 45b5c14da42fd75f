"""Runs what would block the event loop in a small, bounded set of threads."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ingest_service.errors import Overloaded

#: Seconds of work from which on a thread that rests does so: much of it may be one call into C,
#: during which nobody else gets the interpreter's lock.
_LONG_WORK = 0.05
T = TypeVar("T")


class Offload:
    """Some threads, and how much may wait for them.

    A user who asks for much leaves one thread to everybody else, or where there is only one takes
    turns with them, and leaves half of the places to wait.
    """

    def __init__(self, name: str, *, threads: int, waiting: int, rests: bool = False) -> None:
        """Take the number of threads, and of calls that each may have waiting.

        Threads that rest do nothing after long work for as long as it took: so the event loop has
        half of the time, whatever work there is.
        """
        self._rests = rests
        #: Until when it rests, in seconds of the monotonic clock.
        self._rested_at = 0.0
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        # All at once, for later there may be no memory for one: each waits for the others to start.
        everybody = threading.Barrier(threads)
        for _ in range(threads):
            self._executor.submit(everybody.wait)
        self._free = threads * waiting
        self._calls_each = max(1, self._free // 2)
        self._threads_each = max(1, threads - 1)
        #: Of each user with a call that waits or runs: how many, and what its threads are.
        self._calls: Counter[str] = Counter()
        self._turns: dict[str, asyncio.Semaphore] = {}

    async def run(self, user_id: str, function: Callable[[], T]) -> T:
        """Run a function in a thread; raises Overloaded when too many wait, and what it raises.

        Of a caller who leaves, what has not begun is dropped, with all that it holds.
        """
        if self._free == 0 or self._calls[user_id] >= self._calls_each:
            raise Overloaded
        self._free -= 1
        self._calls[user_id] += 1
        turns = self._turns.setdefault(user_id, asyncio.Semaphore(self._threads_each))
        # The executor keeps what was cancelled until its turn comes: not the function, then.
        waiting = [function]
        try:
            await turns.acquire()
            begun = self._executor.submit(lambda: self._work(waiting.pop()))
            future = asyncio.wrap_future(begun)
        except BaseException:
            self._leave(user_id)
            raise

        def leave(future: "asyncio.Future[T]") -> None:
            turns.release()
            self._leave(user_id)
            if not future.cancelled():
                # Whoever left early does not look at it.
                future.exception()

        # When the thread is done, not when the caller is: it may leave early.
        future.add_done_callback(leave)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if begun.cancel():
                waiting.clear()
            raise

    def close(self) -> None:
        """Let running calls end and take no more."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _work(self, function: Callable[[], T]) -> T:
        # Before the next work, not after the last: nobody waits for it where nothing follows.
        if (rest := self._rested_at - time.monotonic()) > 0:
            time.sleep(rest)  # that is what resting means here
        began = time.thread_time()
        try:
            return function()
        finally:
            worked = time.thread_time() - began
            if self._rests and worked > _LONG_WORK:
                self._rested_at = time.monotonic() + worked

    def _leave(self, user_id: str) -> None:
        self._free += 1
        self._calls[user_id] -= 1
        if not self._calls[user_id]:
            del self._calls[user_id], self._turns[user_id]
