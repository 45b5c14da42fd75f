"""Ends unary calls that take too long: until their message is there, or until their answer is."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar, cast

import grpc

from ingest_service.answers import Context
from ingest_service.tally import Tally

T = TypeVar("T")


class CallTimer:
    """The calls that have so many seconds for something, looked at by one timer.

    A timer for each call would cost more than all that is done here: nearly every call is in time.
    """

    def __init__(self, seconds: float, late: str, tally: Tally) -> None:
        """Take the seconds, or up to twice as many, what a late call is told, and who logs it."""
        self._seconds = seconds
        self._late = late
        self._tally = tally
        self._recent: set[asyncio.Task[Any]] = set()
        self._older: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def limit(self, awaitable: Awaitable[T], context: Context) -> T:
        """Wait for it; a call that is late ends with DEADLINE_EXCEEDED."""
        call = cast("asyncio.Task[Any]", asyncio.current_task())
        self._recent.add(call)
        if self._timer is None:
            self._start()
        try:
            return await awaitable
        except asyncio.CancelledError:
            # `uncancel` tells whether the client cancelled as well.
            if call in self._recent or call in self._older or call.uncancel():
                raise
            self._tally.note("call_late", told=self._late)
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, self._late)
            raise AssertionError("abort returned") from None
        finally:
            self._recent.discard(call)
            self._older.discard(call)

    def _start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._look)

    def _look(self) -> None:
        late, self._older, self._recent = self._older, self._recent, set()
        for call in late:
            call.cancel()
        self._timer = None
        if self._older:
            self._start()
