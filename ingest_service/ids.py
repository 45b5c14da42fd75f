"""Event ids: UUID version 7, in order of creation."""

import threading
from collections.abc import Iterator
from random import getrandbits

from eventstore.values import MOST_AHEAD_MS

#: 12 bits of rand_a count the ids of one millisecond (RFC 9562, section 6.2, method 1).
_COUNTER_BITS = 12
_COUNTERS = (1 << _COUNTER_BITS) - 1
#: Random hexadecimal digits of an id, 60 bits. One more digit, "8", holds the variant.
_RANDOM_DIGITS = 15


class EventIds:
    """Makes ids whose order is the order of their making, within one process, in any thread.

    Made here and not by a library, because the time must be the database's (it chooses the
    partition), and one id must cost less than a microsecond. The random bits keep processes apart.
    """

    def __init__(self) -> None:
        """Start before all time."""
        self._lock = threading.Lock()
        #: Milliseconds and counter of the next id, as one number.
        self._next = 0

    def take(self, unix_ms: int, count: int) -> Iterator[str]:
        """Yield `count` ids of this millisecond, or of later ones when it is used up or over.

        A clock that was set back is followed: no id is more than MOST_AHEAD_MS ahead of it.
        """
        first = unix_ms << _COUNTER_BITS
        with self._lock:
            if (self._next + count) >> _COUNTER_BITS <= unix_ms + MOST_AHEAD_MS:
                first = max(first, self._next)
            self._next = first + count
        # Not from `secrets`: ids are no secrets, and a system call for each would be felt.
        digits = f"{getrandbits(64 * count):0{16 * count}x}"
        prefix = ""
        numbers = range(first, first + count)
        for start, number in zip(range(0, 16 * count, 16), numbers, strict=True):
            counter, middle = number & _COUNTERS, start + 3
            if not (prefix and counter):
                time = f"{number >> _COUNTER_BITS:012x}"
                prefix = f"{time[:8]}-{time[8:]}-7"
            yield (
                f"{prefix}{counter:03x}-8{digits[start:middle]}"
                f"-{digits[middle : start + _RANDOM_DIGITS]}"
            )
