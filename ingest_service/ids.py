"""Event ids: UUID version 7, in order of creation."""

from random import getrandbits

#: 12 bits of rand_a count the ids of one millisecond (RFC 9562, section 6.2, method 1).
_COUNTER_LIMIT = 1 << 12
_RANDOM_BITS = 62


class EventIds:
    """Makes ids whose order is the order of their making, within one process.

    Made here and not by a library, because the time must be the database's (it chooses the
    partition) and one id must cost less than a microsecond. Ids are no secrets; 62 random bits
    keep processes apart.
    """

    def __init__(self) -> None:
        """Start before all time."""
        self._millisecond = 0
        self._counter = 0
        self._prefix = ""

    def next(self, unix_ms: int) -> str:
        """Return an id of this millisecond, or of a later one when it is used up or over."""
        if unix_ms > self._millisecond:
            self._start(unix_ms)
        elif self._counter == _COUNTER_LIMIT:
            self._start(self._millisecond + 1)
        counter = self._counter
        self._counter = counter + 1
        # The two highest of 64 bits are the variant, 10.
        tail = f"{getrandbits(_RANDOM_BITS) | 1 << 63:016x}"
        return f"{self._prefix}{counter:03x}-{tail[:4]}-{tail[4:]}"

    def _start(self, unix_ms: int) -> None:
        self._millisecond = unix_ms
        self._counter = 0
        time = f"{unix_ms:012x}"
        self._prefix = f"{time[:8]}-{time[8:]}-7"
