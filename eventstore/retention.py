"""Daily partitions ahead, and retention; in PostgreSQL both run as functions of the migration.

The functions belong to the role that migrates, so that the worker's role needs no DDL rights.
"""

from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, select, text, tuple_

from eventstore.schema import events, idempotency_keys
from eventstore.values import EventStatus

#: Most rows that one transaction deletes, so that it stays short.
_DELETE_ROWS = 10_000


def ensure_partitions(connection: Connection, *, days_ahead: int) -> int:
    """Create the daily partitions from yesterday to `days_ahead`; returns how many were missing."""
    if connection.dialect.name == "sqlite":
        return 0
    statement = text("SELECT ingest_ensure_partitions(:days)")
    return int(connection.execute(statement, {"days": days_ahead}).scalar_one())


def drop_old_events(connection: Connection, *, now: datetime, days: int) -> int:
    """Drop the partitions that ended `days` ago and hold no PENDING event; returns how many.

    In SQLite it deletes final events, at most some thousand at a time.
    """
    if connection.dialect.name != "sqlite":
        statement = text("SELECT ingest_drop_partitions(:days)")
        return int(connection.execute(statement, {"days": days}).scalar_one())
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
