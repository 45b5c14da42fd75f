"""Ends unary calls whose message does not come."""

import asyncio
from typing import Any


class Arrivals:
    """The calls that wait for their message, looked at by one timer.

    A timer for each call would cost more than all that is done here: a message comes with its
    call, or is late.
    """

    def __init__(self, seconds: float) -> None:
        """Take the seconds, or up to twice as many, after which a call is cancelled."""
        self._seconds = seconds
        self._recent: set[asyncio.Task[Any]] = set()
        self._older: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def expect(self, call: "asyncio.Task[Any]") -> None:
        """Note a call that begins to wait."""
        self._recent.add(call)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._seconds, self._look)

    def arrived(self, call: "asyncio.Task[Any]") -> bool:
        """Note that a call waits no more, and return whether it was in time."""
        if call in self._recent:
            self._recent.remove(call)
            return True
        if call in self._older:
            self._older.remove(call)
            return True
        return False

    def _look(self) -> None:
        late, self._older, self._recent = self._older, self._recent, set()
        for call in late:
            call.cancel()
        self._timer = None
        if self._older:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._seconds, self._look)
