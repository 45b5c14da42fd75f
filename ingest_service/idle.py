"""Ends what waits too long for a client."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

#: Looks within the time after which a quiet client counts as gone.
_LOOKS = 4


class IdleWatch:
    """Looks now and then whether something was noted since it looked last.

    A timer that is set anew with every message would cost as much as reading one.
    """

    def __init__(self, expiry: asyncio.Timeout, seconds: float) -> None:
        """Take the time-out to expire, and the seconds without a note that it takes."""
        self._expiry = expiry
        self._pause = seconds / _LOOKS
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._pause, self._look)
        self._noted = True
        self._quiet_looks = 0

    def note(self) -> None:
        """Note that something arrived."""
        self._noted = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let time pass without consequence: it is the server that waits."""
        self._timer.cancel()
        yield
        self._noted = True
        self._timer = self._loop.call_later(self._pause, self._look)

    def expire(self) -> None:
        """Let the time be over."""
        self._timer.cancel()
        with suppress(RuntimeError):
            # Raised when it is over already.
            self._expiry.reschedule(self._loop.time())

    def cancel(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _look(self) -> None:
        self._quiet_looks = 0 if self._noted else self._quiet_looks + 1
        self._noted = False
        if self._quiet_looks >= _LOOKS:
            self.expire()
        else:
            self._timer = self._loop.call_later(self._pause, self._look)


@asynccontextmanager
async def idle_watch(seconds: float) -> AsyncIterator[IdleWatch]:
    """Raise TimeoutError in the body when nothing is noted for `seconds`, or a fourth more."""
    async with asyncio.timeout(None) as expiry:
        watch = IdleWatch(expiry, seconds)
        try:
            yield watch
        finally:
            watch.cancel()
