"""The bulk statements in SQLite's words, for the embedded mode; see postgres.py.

SQLite lets one transaction write at a time (BEGIN IMMEDIATE), so nothing here needs row locks.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    bindparam,
    insert,
    select,
    tuple_,
    update,
)

from eventstore.clock import in_seconds
from eventstore.schema import events, idempotency_keys, users
from eventstore.values import EventKey, EventStatus, Finished, NewEvent, PendingEvent

#: SQLite's default limit of bound variables is 32,766 since 3.32; a key needs two.
_KEYS_PER_STATEMENT = 10_000

_pending_columns = (
    events.c.user_id,
    events.c.id,
    events.c.type,
    events.c.payload,
    events.c.attempts,
    users.c.email,
)


def insert_events(connection: Connection, rows: Sequence[NewEvent], next_attempt: datetime) -> None:
    """Write the rows with one executemany inside the connection's transaction."""
    connection.execute(
        insert(events),
        [
            {
                "user_id": row.user_id,
                "id": row.id,
                "received_at": row.received_at,
                "occurred_at": row.occurred_at,
                "next_attempt_at": next_attempt,
                "type": row.type,
                "source": row.source,
                "subject": row.subject,
                "idempotency_key": row.idempotency_key or None,
                "attributes": row.attributes or None,
                "payload": row.payload,
            }
            for row in rows
        ],
    )


def insert_keys(connection: Connection, rows: Sequence[NewEvent]) -> set[tuple[str, str]]:
    """Insert idempotency keys that are free and return those, as (user_id, key)."""
    taken: set[tuple[str, str]] = set()
    pair = tuple_(idempotency_keys.c.user_id, idempotency_keys.c.key)
    for start in range(0, len(rows), _KEYS_PER_STATEMENT):
        wanted = [(r.user_id, r.idempotency_key) for r in rows[start : start + _KEYS_PER_STATEMENT]]
        statement = select(idempotency_keys.c.user_id, idempotency_keys.c.key)
        taken.update((r[0], r[1]) for r in connection.execute(statement.where(pair.in_(wanted))))
    free = [row for row in rows if (row.user_id, row.idempotency_key) not in taken]
    if free:
        connection.execute(
            insert(idempotency_keys),
            [
                {
                    "user_id": row.user_id,
                    "key": row.idempotency_key,
                    "event_id": row.id,
                    "fingerprint": row.fingerprint,
                    "received_at": row.received_at,
                }
                for row in free
            ],
        )
    return {(row.user_id, row.idempotency_key) for row in free}


def statuses(connection: Connection, keys: Sequence[EventKey]) -> dict[EventKey, EventStatus]:
    """Return the status of those events that exist."""
    found = {}
    for start in range(0, len(keys), _KEYS_PER_STATEMENT):
        statement = select(events.c.user_id, events.c.id, events.c.status).where(
            _named(keys[start : start + _KEYS_PER_STATEMENT])
        )
        for row in connection.execute(statement):
            found[EventKey(row.user_id, row.id)] = EventStatus(row.status)
    return found


def waiting(connection: Connection, keys: Sequence[EventKey]) -> list[PendingEvent]:
    """Return the rows that wait for their first delivery; others are left out."""
    statement = (
        select(*_pending_columns)
        .join(users, users.c.id == events.c.user_id)
        .where(
            _named(keys),
            events.c.status == EventStatus.PENDING,
            events.c.attempts == 0,
            events.c.lease_token.is_(None),
        )
    )
    return _pending(connection, statement)


def lease(
    connection: Connection, keys: Sequence[EventKey], *, attempts: int, token: str, seconds: float
) -> list[PendingEvent]:
    """Count an attempt against the rows that still have `attempts`, and hold them for a time."""
    connection.execute(
        update(events)
        .where(
            _named(keys),
            events.c.status == EventStatus.PENDING,
            events.c.attempts == attempts,
            events.c.lease_token.is_(None),
        )
        .values(
            attempts=events.c.attempts + 1, lease_token=token, next_attempt_at=in_seconds(seconds)
        )
    )
    statement = (
        select(*_pending_columns)
        .join(users, users.c.id == events.c.user_id)
        .where(_named(keys), events.c.lease_token == token)
    )
    return _pending(connection, statement)


def finish(connection: Connection, results: Sequence[Finished], token: str | None) -> int:
    """Write final states to rows that are PENDING under this token; returns how many were."""
    statement = (
        update(events)
        .where(
            events.c.user_id == bindparam("of_user"),
            events.c.id == bindparam("of_id"),
            events.c.status == EventStatus.PENDING,
            events.c.lease_token.is_not_distinct_from(bindparam("token", type_=events.c.id.type)),
        )
        .values(
            status=bindparam("new_status"),
            properties=bindparam("new_properties"),
            processing_error=bindparam("new_error"),
            processed_at=in_seconds(0),
            lease_token=None,
        )
    )
    return connection.execute(
        statement,
        [
            {
                "of_user": result.key.user_id,
                "of_id": result.key.id,
                "token": token,
                "new_status": int(result.status),
                "new_properties": result.properties,
                "new_error": result.error,
            }
            for result in results
        ],
    ).rowcount


def end_leases(connection: Connection, keys: Sequence[EventKey], seconds: float) -> None:
    """Take the rows from whoever held them, and leave them alone for `seconds`."""
    if keys:
        connection.execute(
            update(events)
            .where(_named(keys), events.c.status == EventStatus.PENDING)
            .values(lease_token=None, next_attempt_at=in_seconds(seconds))
        )


def _named(keys: Sequence[EventKey]) -> ColumnElement[bool]:
    return tuple_(events.c.user_id, events.c.id).in_([tuple(key) for key in keys])


def _pending(connection: Connection, statement: Select[Any]) -> list[PendingEvent]:
    return [
        PendingEvent(EventKey(row[0], row[1]), *row[2:]) for row in connection.execute(statement)
    ]
