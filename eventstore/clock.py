"""Time as the database has it, so that no machine's wall clock decides anything."""

import time
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any

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


class DatabaseClock:
    """Tells the database's time without asking it each time.

    It remembers the offset between the database and this machine's monotonic clock, so a wall
    clock that is wrong or jumps has no effect. The error is at most half of the round trip in which
    the offset was measured; a slow round trip does not replace what a quick one has told.
    """

    def __init__(self) -> None:
        """Know no time until the first synchronisation: the wall clock may be wrong."""
        self._offset = 0.0
        self._synchronised_at = float("-inf")
        self._measured_at = 0.0
        self._error = float("inf")
        #: Seconds that the database took to tell the time when it was last asked.
        self.round_trip = 0.0

    def now(self) -> datetime:
        """Return the time, aware, in UTC.

        Raises TransientStorageError as long as the database has not told it once.
        """
        if not self.synchronised:
            raise TransientStorageError("the database has not told the time yet")
        return datetime.fromtimestamp(time.monotonic() + self._offset, UTC)

    @property
    def synchronised(self) -> bool:
        """Whether the database was ever asked."""
        return isfinite(self._error)

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
        if error > self._error + (after - self._measured_at) * _DRIFT:
            return
        self._offset = (told - datetime.fromtimestamp(0, UTC)) / timedelta(seconds=1) - (
            before + after
        ) / 2
        # Last, for other threads ask for the time as soon as there is one.
        self._error, self._measured_at = error, after
