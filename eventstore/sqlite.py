"""The bulk statements in SQLite's words, for the embedded mode; see postgres.py.

SQLite lets one transaction write at a time (BEGIN IMMEDIATE), so nothing here needs row locks.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import chain

import orjson
from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import sqlite as dialect

from eventstore.clock import SQLITE_NOW, in_seconds
from eventstore.schema import events, idempotency_keys, microseconds, users
from eventstore.values import (
    OFFERED,
    EventKey,
    EventStatus,
    Finished,
    IdempotencyKey,
    KeyHolder,
    NewEvent,
    PendingEvent,
    User,
)

#: SQLite's default limit of bound variables is 32,766 since 3.32.
_MOST_NAMES = 20_000

# Written out, and given tuples: SQLAlchemy takes longer to bind a row than SQLite to write it.
_INSERT_INTO = """
INSERT INTO events (user_id, id, received_at, occurred_at, next_attempt_at, type, source, subject,
                    idempotency_key, attributes, payload)
VALUES """
_ROW = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
#: Statements for so many rows. The driver lets go of the interpreter's lock while SQLite works, and
#: `executemany` takes it back after each row: the event loop and the writer then mostly wait.
_INSERTS = {count: _INSERT_INTO + ", ".join([_ROW] * count) for count in (1_000, 100)}
_INSERT = _INSERT_INTO + _ROW
#: As SQLAlchemy's Uuid stores it in SQLite.
_OFFERED = OFFERED.replace("-", "")
_WAITING = f"""
SELECT e.id, e.type, e.payload, e.attempts, u.email
FROM events e JOIN users u ON u.id = e.user_id
WHERE e.user_id = ? AND e.id IN (SELECT value FROM json_each(?))
  AND e.status = 1 AND e.attempts = 0 AND coalesce(e.lease_token, '{_OFFERED}') = '{_OFFERED}'
"""  # noqa: S608  # our own constant
_FINISH = f"""
UPDATE events
SET status = ?, properties = ?, processing_error = ?, processed_at = {SQLITE_NOW},
    lease_token = NULL
WHERE user_id = ? AND id = ? AND status = 1 AND coalesce(lease_token, '{_OFFERED}') = ?
"""  # noqa: S608  # our own constant

_pending_columns = (
    events.c.user_id,
    events.c.id,
    events.c.type,
    events.c.payload,
    events.c.attempts,
    users.c.email,
)


def insert_events(connection: Connection, rows: Sequence[NewEvent], next_attempt: datetime) -> None:
    """Write the rows inside the connection's transaction."""
    due = microseconds(next_attempt)
    values = []
    received_at, received = next_attempt, due
    for user, id_, type_, source, subject, key, _, occurred_at, at, attributes, payload in rows:
        # The events of one message share one datetime object, mostly for both times.
        if at is not received_at:
            received_at, received = at, microseconds(at)
        occurred = received if occurred_at is at else microseconds(occurred_at)
        values.append((
            _hex(user), _hex(id_), received, occurred, due, type_, source, subject,
            key or None, attributes or None, payload,
        ))  # fmt: skip
    start = 0
    for count, statement in _INSERTS.items():
        while len(values) - start >= count:
            together = chain.from_iterable(values[start : start + count])
            connection.exec_driver_sql(statement, tuple(together))
            start += count
    if start < len(values):
        connection.exec_driver_sql(_INSERT, values[start:])


def upsert_users(connection: Connection, seen: Sequence[User]) -> None:
    """Write the users that are new, and e-mail address and last_seen_at of the others."""
    new = dialect.insert(users).values(first_seen_at=in_seconds(0), last_seen_at=in_seconds(0))
    connection.execute(
        new.on_conflict_do_update(
            index_elements=[users.c.id],
            set_={
                "email": func.coalesce(func.nullif(new.excluded.email, ""), users.c.email),
                "last_seen_at": new.excluded.last_seen_at,
            },
        ),
        [
            {"id": user.id, "issuer": user.issuer, "subject": user.subject, "email": user.email}
            for user in seen
        ],
    )


def insert_keys(connection: Connection, rows: Sequence[NewEvent]) -> set[str]:
    """Insert idempotency keys that are free and return the ids of the events that have them now."""
    keys = [(row.user_id, row.idempotency_key) for row in rows]
    taken = {holder.key for holder in holders(connection, keys)}
    free = [row for row, key in zip(rows, keys, strict=True) if key not in taken]
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
    return {row.id for row in free}


def holders(connection: Connection, keys: Sequence[IdempotencyKey]) -> list[KeyHolder]:
    """Return who holds those keys that are taken."""
    table = idempotency_keys
    status = (
        select(events.c.status)
        .where(events.c.user_id == table.c.user_id, events.c.id == table.c.event_id)
        .scalar_subquery()
    )
    return [
        KeyHolder(
            (row.user_id, row.key),
            row.event_id,
            row.fingerprint,
            row.received_at,
            EventStatus(row.status) if row.status else None,
        )
        for user_id, texts in _by_user(keys)
        for row in connection.execute(
            select(table, status.label("status")).where(
                table.c.user_id == user_id, table.c.key.in_(texts)
            )
        )
    ]


def free_keys(connection: Connection, rows: Sequence[NewEvent]) -> None:
    """Delete the idempotency keys that these events hold."""
    table = idempotency_keys
    for user_id, texts in _by_user([(row.user_id, row.idempotency_key) for row in rows]):
        connection.execute(delete(table).where(table.c.user_id == user_id, table.c.key.in_(texts)))


def waiting(connection: Connection, keys: Sequence[EventKey]) -> list[PendingEvent]:
    """Return the rows that wait for their first delivery; others are left out."""
    by_user: dict[str, dict[str, EventKey]] = {}
    for key in keys:
        by_user.setdefault(key.user_id, {})[_hex(key.id)] = key
    return [
        PendingEvent(named[row[0]], *row[1:])
        for user_id, named in by_user.items()
        for row in connection.exec_driver_sql(
            _WAITING, (_hex(user_id), orjson.dumps(list(named)).decode())
        ).all()
    ]


def lease(
    connection: Connection, keys: Sequence[EventKey], *, attempts: int, token: str, seconds: float
) -> list[PendingEvent]:
    """Count an attempt against offered rows that have `attempts`, and hold them for a time."""
    found = []
    for named in _named(keys):
        connection.execute(
            update(events)
            .where(
                named,
                events.c.status == EventStatus.PENDING,
                events.c.attempts == attempts,
                events.c.lease_token == OFFERED,
            )
            .values(
                attempts=events.c.attempts + 1,
                lease_token=token,
                next_attempt_at=in_seconds(seconds),
            )
        )
        held = (
            select(*_pending_columns)
            .join(users, users.c.id == events.c.user_id)
            .where(named, events.c.lease_token == token)
        )
        found += [
            PendingEvent(EventKey(row[0], row[1]), *row[2:]) for row in connection.execute(held)
        ]
    return found


def finish(connection: Connection, results: Sequence[Finished], token: str | None) -> int:
    """Write final states to rows that are PENDING under this token; returns how many were."""
    held = _hex(token or OFFERED)
    return connection.exec_driver_sql(
        _FINISH,
        [
            (int(status), properties, error, _hex(user_id), _hex(event_id), held)
            for (user_id, event_id), status, properties, error in results
        ],
    ).rowcount


def offer(connection: Connection, keys: Sequence[EventKey], seconds: float) -> None:
    """Take the rows from whoever held them, for a recovery that begins within `seconds`."""
    for named in _named(keys):
        connection.execute(
            update(events)
            .where(named, events.c.status == EventStatus.PENDING)
            .values(lease_token=OFFERED, next_attempt_at=in_seconds(seconds))
        )


def _hex(uuid: str) -> str:
    """Return an id as SQLAlchemy's Uuid stores it in SQLite."""
    return uuid.replace("-", "")


def _by_user(keys: Sequence[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """Split what is named by user and name: for pairs, SQLite would read all rows of the users."""
    names: dict[str, list[str]] = {}
    for user_id, name in keys:
        names.setdefault(user_id, []).append(name)
    for user_id, of_user in names.items():
        for start in range(0, len(of_user), _MOST_NAMES):
            yield user_id, of_user[start : start + _MOST_NAMES]


def _named(keys: Sequence[EventKey]) -> Iterator[ColumnElement[bool]]:
    for user_id, ids in _by_user(keys):
        yield and_(events.c.user_id == user_id, events.c.id.in_(ids))
