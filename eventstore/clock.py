"""Time as the database has it, so that no machine's wall clock decides anything."""

import time
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, FunctionElement, select
from sqlalchemy.ext.compiler import compiles

from eventstore.errors import TransientStorageError
from eventstore.schema import UtcDateTime

#: Seconds after which the offset is measured again; clocks drift by microseconds in that time.
_SYNC_SECONDS = 10.0
#: By how much two clocks may drift apart, a hundred microseconds a second being a bad crystal.
_DRIFT = 1e-4

#: SQLite has no date type; microseconds since 1970, with the milliseconds that it can tell.
SQLITE_NOW = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000"


class in_seconds(FunctionElement[datetime]):  # noqa: N801  # reads as a SQL function, like func.now
    """The database's time at the start of the statement, plus so many seconds.

    Stable within a statement, so that PostgreSQL can compare it with an index.
    """

    type = UtcDateTime()
    inherit_cache = True


@compiles(in_seconds, "postgresql")
def _in_seconds_postgresql(element: in_seconds, compiler: Any, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    return f"(statement_timestamp() + make_interval(secs => {seconds}))"


@compiles(in_seconds, "sqlite")
def _in_seconds_sqlite(element: in_seconds, compiler: Any, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    return f"({SQLITE_NOW} + CAST({seconds} * 1000000 AS INTEGER))"


class _Measurement(NamedTuple):
    """How far the database's time is from the monotonic clock, by how much that may be wrong."""

    offset: float
    error: float
    #: When it was measured, by the monotonic clock.
    at: float


class DatabaseClock:
    """Tells the database's time without asking it each time.

    It remembers the offset between the database and this machine's monotonic clock, so a wall
    clock that is wrong or jumps has no effect. The error is at most half of the round trip in which
    the offset was measured; a slow round trip does not replace what a quick one has told.
    """

    def __init__(self) -> None:
        """Know no time until the first synchronisation: the wall clock may be wrong."""
        #: Replaced as a whole: other threads ask for the time meanwhile.
        self._known: _Measurement | None = None
        self._synchronised_at = float("-inf")
        #: Seconds that the database took to tell the time when it was last asked.
        self.round_trip = 0.0

    def now(self) -> datetime:
        """Return the time, aware, in UTC.

        Raises TransientStorageError as long as the database has not told it once.
        """
        if self._known is None:
            raise TransientStorageError("the database has not told the time yet")
        return datetime.fromtimestamp(time.monotonic() + self._known.offset, UTC)

    @property
    def synchronised(self) -> bool:
        """Whether the database was ever asked."""
        return self._known is not None

    @property
    def stale(self) -> bool:
        """Whether the offset should be measured again."""
        return time.monotonic() - self._synchronised_at > _SYNC_SECONDS

    def doubt(self) -> None:
        """Have the offset and the round trip measured again before they are next needed."""
        self._synchronised_at = float("-inf")

    def synchronise(self, connection: Connection) -> None:
        """Measure the offset; this also tells whether the connection is alive."""
        before = time.monotonic()
        told = connection.execute(select(in_seconds(0))).scalar_one()
        after = time.monotonic()
        self._synchronised_at = after
        self.round_trip = after - before
        error = self.round_trip / 2
        offset = told.timestamp() - (before + after) / 2
        if known := self._known:
            known_error = known.error + (after - known.at) * _DRIFT
            # Further away than both errors allow is another time: somebody has set the clock.
            if error > known_error and abs(offset - known.offset) <= error + known_error:
                return
        self._known = _Measurement(offset, error, after)
