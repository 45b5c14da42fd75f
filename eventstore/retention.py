"""Daily partitions ahead, and retention, in PostgreSQL: functions of the migration.

The functions belong to the role that migrates, so that the worker's role needs no DDL rights. One
worker at a time makes and drops partitions: two would make the same one, and one of them fail.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, case, func, select, text

#: Pages of 8 KiB that one transaction looks through, so that it stays short: some 60,000 keys.
_PAGES = 1_024
#: Advisory lock of whoever makes or drops partitions.
_HOUSE_LOCK = 0x1A6E59
#: Milliseconds that it waits for the table: whoever submits meanwhile waits behind it.
_SHORT_LOCK = text("SET LOCAL lock_timeout = 200")
#: Seconds, then milliseconds, in which the rows of a day must have moved: some ten million.
_LONGEST = 610.0
_LONG_STATEMENT = text("SET LOCAL statement_timeout = 600000")
_STRAYS = text("SELECT EXISTS (SELECT FROM events_default)")

# By pages, as an index on the time would cost every event, and a look at all rows takes too long
# where keys are many. Not by a join with a list of old ones either: see `_KEYED_OPTIONS`.
_FORGET = text("""
DELETE FROM idempotency_keys
WHERE ctid >= CAST(:first AS tid) AND ctid < CAST(:behind AS tid)
  AND received_at < statement_timestamp() - make_interval(days => :days)
""")
_TABLE_PAGES = text(
    "SELECT pg_relation_size('idempotency_keys') / current_setting('block_size')::int"
)


def ensure_partitions(connection: Connection, *, days_ahead: int) -> int:
    """Create the daily partitions from yesterday to `days_ahead`; returns how many it created.

    With rows in the default partition it creates one at a time, and may take minutes: repeat it
    until it returns 0. While another transaction creates or drops partitions, it leaves that to
    this one.
    """
    if not connection.execute(_STRAYS).scalar_one():
        return _alone(connection, "ingest_ensure_partitions", days_ahead)
    with _patience(connection):
        return _alone(connection, "ingest_ensure_partitions", days_ahead)


def drop_old_events(connection: Connection, *, days: int) -> int:
    """Drop the partitions that ended `days` ago and hold no PENDING event; returns how many.

    While another transaction creates or drops partitions, it drops none.
    """
    return _alone(connection, "ingest_drop_partitions", days)


def forget_old_keys(connection: Connection, *, days: int, page: int = 0) -> tuple[int, int]:
    """Delete idempotency keys older than `days` from some pages of the table, from `page` on.

    Returns how many, and the page to go on from: 0 when there is no more to look at.
    """
    behind = page + _PAGES
    count = connection.execute(
        _FORGET, {"first": f"({page},0)", "behind": f"({behind},0)", "days": days}
    ).rowcount
    return count, behind if behind < connection.execute(_TABLE_PAGES).scalar_one() else 0


@contextmanager
def _patience(connection: Connection) -> Iterator[None]:
    """Let statements take long, those of this transaction and as far as we watch them here."""
    watched: Any = connection.connection.dbapi_connection
    connection.execute(_LONG_STATEMENT)
    usual, watched.limit = watched.limit, _LONGEST
    try:
        yield
    finally:
        watched.limit = usual


def _alone(connection: Connection, function: str, days: int) -> int:
    """Call a function of the migration unless another transaction is in one; returns its count."""
    connection.execute(_SHORT_LOCK)
    # CASE evaluates the call only when the lock was free; it is held until the transaction ends.
    call = getattr(func, function)(days)
    statement = select(case((func.pg_try_advisory_xact_lock(_HOUSE_LOCK), call), else_=0))
    return int(connection.execute(statement).scalar_one())
