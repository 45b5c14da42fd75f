"""Event ids: UUID version 7, in order of creation."""

from collections.abc import Iterator
from random import getrandbits

#: 12 bits of rand_a count the ids of one millisecond (RFC 9562, section 6.2, method 1).
_COUNTER_LIMIT = 1 << 12
#: Random hexadecimal digits of an id, 60 bits. One more digit, "8", holds the variant.
_RANDOM_DIGITS = 15


class EventIds:
    """Makes ids whose order is the order of their making, within one process.

    Made here and not by a library, because the time must be the database's (it chooses the
    partition), and one id must cost less than a microsecond. The random bits keep processes apart.
    """

    def __init__(self) -> None:
        """Start before all time."""
        self._millisecond = 0
        self._counter = 0

    def take(self, unix_ms: int, count: int) -> Iterator[str]:
        """Yield `count` ids of this millisecond, or of later ones when it is used up or over."""
        # Not from `secrets`: ids are no secrets, and a system call for each would be felt.
        digits = f"{getrandbits(64 * count):0{16 * count}x}"
        if unix_ms > self._millisecond:
            self._millisecond, self._counter = unix_ms, 0
        prefix = self._prefix()
        for start in range(0, 16 * count, 16):
            if self._counter == _COUNTER_LIMIT:
                self._millisecond, self._counter = self._millisecond + 1, 0
                prefix = self._prefix()
            middle = start + 3
            # Counted before the id is handed out: nobody asks for what comes after the last one.
            counter, self._counter = self._counter, self._counter + 1
            yield (
                f"{prefix}{counter:03x}-8{digits[start:middle]}"
                f"-{digits[middle : start + _RANDOM_DIGITS]}"
            )

    def _prefix(self) -> str:
        time = f"{self._millisecond:012x}"
        return f"{time[:8]}-{time[8:]}-7"
