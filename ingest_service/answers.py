"""The room that answers take in memory until their clients have taken them."""

import asyncio
from collections import Counter, deque
from typing import Any, NamedTuple, TypeAlias

import grpc

from ingest_service.errors import Overloaded, RateLimited

#: Bytes of answers with content that may be in this process at once. Memory holds each of them
#: twice while its client takes it, here and in gRPC.
MOST_BYTES = 32 << 20
#: Seconds that a call waits for room; a client that reads its answers soon makes some.
_LONGEST_WAIT = 5.0
#: Calls of one user that may wait for room.
_MOST_WAITING = 256

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class _Waiter(NamedTuple):
    context: Context
    size: int
    turn: "asyncio.Future[None]"


class Answers:
    """Counts the bytes of answers from before they are read until their clients took them.

    gRPC keeps an answer until the client's flow control takes it, or the call ends in another
    way. A user may hold as much as it leaves free: one who reads nothing gets half of all, two
    get a third each, and there is always some room for somebody else.
    """

    def __init__(self) -> None:
        """Start with all of it free."""
        self._free = MOST_BYTES
        self._held: Counter[str] = Counter()
        self._calls: dict[Context, tuple[str, int]] = {}
        self._waiting: dict[str, deque[_Waiter]] = {}

    async def reserve(self, context: Context, user_id: str, size: int) -> None:
        """Wait until the call may hold so many bytes, in place of what it held.

        They are free again when the call has ended, however it does. When there is no room, raises
        RateLimited for the user who holds most, and Overloaded for everybody else.
        """
        if self._give_back(context):
            self._admit()
        if self.has_room(user_id, size):
            self._take(context, user_id, size)
            return
        queue = self._waiting.setdefault(user_id, deque())
        if len(queue) >= _MOST_WAITING:
            raise self._refusal(user_id)
        waiter = _Waiter(context, size, asyncio.get_running_loop().create_future())
        queue.append(waiter)
        try:
            async with asyncio.timeout(_LONGEST_WAIT):
                await waiter.turn
        except TimeoutError:
            raise self._refusal(user_id) from None
        finally:
            self._forget(user_id, waiter)

    def has_room(self, user_id: str, size: int) -> bool:
        """Whether the user may hold so many bytes more, at once."""
        return user_id not in self._waiting and self._fits(user_id, size)

    def settle(self, context: Context, size: int) -> None:
        """Correct what the call holds, if it holds anything, to the size that its answer has."""
        if context in self._calls:
            user_id, reserved = self._calls[context]
            self._count(user_id, size - reserved)
            self._calls[context] = (user_id, size)
            self._admit()

    def _fits(self, user_id: str, size: int) -> bool:
        return self._held[user_id] + size <= self._free - size

    def _refusal(self, user_id: str) -> RateLimited | Overloaded:
        held = self._held[user_id]
        if held and held == max(self._held.values()):
            return RateLimited("bytes of answers not yet read", _LONGEST_WAIT)
        return Overloaded()

    def _take(self, context: Context, user_id: str, size: int) -> None:
        self._calls[context] = (user_id, size)
        self._count(user_id, size)
        # Comes when the client has taken the answer, cancelled, or is gone.
        context.add_done_callback(self._ended)  # type: ignore[arg-type]

    def _ended(self, context: Context) -> None:
        if self._give_back(context):
            self._admit()

    def _give_back(self, context: Context) -> bool:
        if context not in self._calls:
            return False
        user_id, size = self._calls.pop(context)
        self._count(user_id, -size)
        return True

    def _count(self, user_id: str, size: int) -> None:
        self._free -= size
        self._held[user_id] += size
        if not self._held[user_id]:
            del self._held[user_id]

    def _admit(self) -> None:
        """Give room to who waits for it, each user's calls in their order."""
        for user_id, queue in self._waiting.items():
            for waiter in queue:
                if waiter.turn.done():
                    continue
                if not self._fits(user_id, waiter.size):
                    break
                self._take(waiter.context, user_id, waiter.size)
                waiter.turn.set_result(None)

    def _forget(self, user_id: str, waiter: _Waiter) -> None:
        """Remove a call that waits no more; those behind it may fit now."""
        queue = self._waiting[user_id]
        queue.remove(waiter)
        if not queue:
            del self._waiting[user_id]
        self._admit()
