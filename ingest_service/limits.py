"""What one user may take: events, bytes and reads a second, streams at once, PENDING events."""

import asyncio
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from eventstore import reading
from eventstore.settings import Settings
from ingest_service.errors import RateLimited
from ingest_service.reader import Reader

log = structlog.get_logger()

#: Seconds of its rate that a user may take at once, after having taken nothing.
_BURST_SECONDS = 2.0
#: Users that are remembered; one that is forgotten starts with a full bucket.
_USERS = 100_000
#: Seconds between two counts of PENDING events, at least and at most, and in between how many times
#: as long as the last one took: a backlog of millions shall not keep the database busy.
_PAUSE = 1.0
_LONGEST_PAUSE = 10.0
_PAUSE_FACTOR = 4.0
_PENDING = "PENDING events"


class TokenBuckets:
    """One token bucket for each user, all with the same rate; a rate of 0 is no limit.

    A bucket may run into debt: what is larger than the burst passes once, and is paid for with
    waiting afterwards.
    """

    def __init__(self, rate: float) -> None:
        """Take the tokens that come in each second."""
        self._rate = rate
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, user_id: str) -> float:
        """Return the seconds until the user may take something, 0 for now."""
        if not self._rate:
            return 0.0
        tokens, _ = self._refilled(user_id)
        return 0.0 if tokens > 0 else (1 - tokens) / self._rate

    def take(self, user_id: str, amount: float) -> None:
        """Take tokens, whether there are any or not."""
        if not self._rate:
            return
        tokens, now = self._refilled(user_id)
        self._buckets[user_id] = (tokens - amount, now)
        self._buckets.move_to_end(user_id)
        if len(self._buckets) > _USERS:
            self._buckets.popitem(last=False)

    def _refilled(self, user_id: str) -> tuple[float, float]:
        now = time.monotonic()
        full = self._rate * _BURST_SECONDS
        tokens, at = self._buckets.get(user_id, (full, now))
        return min(full, tokens + (now - at) * self._rate), now


class UserLimits:
    """The limits of the settings, each of them off at 0."""

    def __init__(self, settings: Settings) -> None:
        """Take the rates."""
        self._events = TokenBuckets(settings.user_events_per_second)
        self._bytes = TokenBuckets(settings.user_bytes_per_second)
        self._reads = TokenBuckets(settings.user_reads_per_second)
        self._most_streams = settings.user_streams
        self._streams: Counter[str] = Counter()
        self._most_pending = settings.user_pending_events
        #: Users who had that many when it was last counted, and since when, in seconds of the
        #: monotonic clock.
        self._full: dict[str, float] = {}

    def admit(self, user_id: str) -> None:
        """Raise RateLimited when the user may not submit now; `charge` follows what is taken."""
        if self.is_full(user_id):
            raise RateLimited(_PENDING, _PAUSE)
        wait = self.submit_wait(user_id)
        if wait:
            raise RateLimited("events or bytes a second", wait)

    def is_full(self, user_id: str) -> bool:
        """Whether the user had as many PENDING events as it may when they were last counted."""
        return user_id in self._full

    def admit_message(self, user_id: str) -> None:
        """Raise RateLimited for what a stream sends although its user is full, and not just now.

        A stream that goes on all the time is not read then, see `room`.
        """
        if self._full and time.monotonic() - self._full.get(user_id, math.inf) > _PAUSE:
            raise RateLimited(_PENDING, _PAUSE)

    async def room(self, user_id: str, until: float, check: Callable[[], None]) -> None:
        """Wait while the user is full, until a time at most; `check` may raise meanwhile."""
        while self.is_full(user_id) and time.monotonic() < until:
            await asyncio.sleep(_PAUSE)  # as often as they are counted
            check()

    def submit_wait(self, user_id: str) -> float:
        """Return the seconds until the user's rates let it submit, 0 for now."""
        return max(self._events.wait(user_id), self._bytes.wait(user_id))

    def charge(self, user_id: str, *, events: int, size: int) -> None:
        """Count what was submitted, whether it was within the limits or not."""
        self._events.take(user_id, events)
        self._bytes.take(user_id, size)

    def read(self, user_id: str) -> None:
        """Count a call that reads; raises RateLimited."""
        wait = self._reads.wait(user_id)
        if wait:
            raise RateLimited("reads a second", wait)
        self._reads.take(user_id, 1)

    @contextmanager
    def stream(self, user_id: str) -> Iterator[None]:
        """Count an open stream; raises RateLimited when there are too many."""
        if self._most_streams and self._streams[user_id] >= self._most_streams:
            raise RateLimited("streams at once", 1.0)
        self._streams[user_id] += 1
        try:
            yield
        finally:
            self._streams[user_id] -= 1
            if not self._streams[user_id]:
                del self._streams[user_id]

    async def count_pending(self, reader: Reader) -> None:
        """Count the PENDING events again and again, until cancelled, if there is a limit."""
        while self._most_pending:
            began = time.monotonic()
            try:
                full = await reader.read(
                    "", reading.users_with_pending, at_least=self._most_pending
                )
                self._full = {user: self._full.get(user, time.monotonic()) for user in full}
            except Exception as error:  # noqa: BLE001  # it must not be the last count
                # Who had too many has them still, as far as we know.
                log.warning("pending_not_counted", error=type(error).__name__)
            pause = max(_PAUSE, _PAUSE_FACTOR * (time.monotonic() - began))
            await asyncio.sleep(min(pause, _LONGEST_PAUSE))
