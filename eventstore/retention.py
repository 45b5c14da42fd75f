"""Daily partitions ahead, and retention; in PostgreSQL both run as functions of the migration.

The functions belong to the role that migrates, so that the worker's role needs no DDL rights. One
worker at a time makes and drops partitions: two would make the same one, and one of them fail.
"""

from datetime import datetime, timedelta

from sqlalchemy import Connection, case, delete, func, select, tuple_

from eventstore.schema import events, idempotency_keys
from eventstore.values import EventStatus

#: Most rows that one transaction deletes, so that it stays short.
_DELETE_ROWS = 10_000
#: Advisory lock of whoever makes or drops partitions.
_HOUSE_LOCK = 0x1A6E59


def ensure_partitions(connection: Connection, *, days_ahead: int) -> int:
    """Create the daily partitions from yesterday to `days_ahead`; returns how many it created.

    While another transaction creates or drops partitions, it leaves that to this one.
    """
    if connection.dialect.name == "sqlite":
        return 0
    return _alone(connection, "ingest_ensure_partitions", days_ahead)


def drop_old_events(connection: Connection, *, now: datetime, days: int) -> int:
    """Drop the partitions that ended `days` ago and hold no PENDING event; returns how many.

    While another transaction creates or drops partitions, it drops none. In SQLite it deletes final
    events, at most some thousand at a time.
    """
    if connection.dialect.name != "sqlite":
        return _alone(connection, "ingest_drop_partitions", days)
    old = (
        select(events.c.id)
        .where(
            events.c.received_at < now - timedelta(days=days),
            events.c.status != EventStatus.PENDING,
        )
        .limit(_DELETE_ROWS)
    )
    return connection.execute(delete(events).where(events.c.id.in_(old))).rowcount


def forget_old_keys(connection: Connection, *, now: datetime, days: int) -> int:
    """Delete idempotency keys older than `days`, at most some thousand; returns how many."""
    table = idempotency_keys
    old = (
        select(table.c.user_id, table.c.key)
        .where(table.c.received_at < now - timedelta(days=days))
        .limit(_DELETE_ROWS)
    )
    return connection.execute(
        delete(table).where(tuple_(table.c.user_id, table.c.key).in_(old))
    ).rowcount


def _alone(connection: Connection, function: str, days: int) -> int:
    """Call a function of the migration unless another transaction is in one; returns its count."""
    # CASE evaluates the call only when the lock was free; it is held until the transaction ends.
    call = getattr(func, function)(days)
    statement = select(case((func.pg_try_advisory_xact_lock(_HOUSE_LOCK), call), else_=0))
    return int(connection.execute(statement).scalar_one())
