"""The bulk statements in PostgreSQL's own words: COPY in, arrays for keyed look-ups.

`sqlite.py` holds the same functions for the embedded mode. Arrays are written as literals where
the values are UUIDs or numbers, because one long string binds faster than a list of 500.
"""

import io
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection

from eventstore.copytext import COLUMNS, copy_text
from eventstore.lookups import array, key_lookups, lookups, text_array
from eventstore.prepared import Prepared
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

_COPY = f"COPY events ({COLUMNS}) FROM STDIN"
#: One read of the buffer per group: psycopg2 would otherwise hand it over in 8 KiB pieces.
_COPY_PIECE = 1 << 20


_ROW_TYPES = (
    "uuid, uuid, timestamptz, timestamptz, timestamptz, text, text, text, text, jsonb, jsonb"
)
#: One event alone: in one round trip, where COPY takes two.
_INSERT_ONE = Prepared(
    "ingest_insert",
    _ROW_TYPES,
    f"INSERT INTO events ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",  # noqa: S608
)

#: A token without an address does not erase the known one.
_UPSERT_USERS = """
INSERT INTO users (id, issuer, subject, email, first_seen_at, last_seen_at)
SELECT *, statement_timestamp(), statement_timestamp()
FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[])
ON CONFLICT (id) DO UPDATE
SET email = coalesce(nullif(excluded.email, ''), users.email), last_seen_at = excluded.last_seen_at
"""

_INSERT_KEYS = Prepared("ingest_keys", "uuid[], text[], uuid[], bytea[], timestamptz[]", """
INSERT INTO idempotency_keys (user_id, key, event_id, fingerprint, received_at)
SELECT * FROM unnest($1, $2, $3, $4, $5)
ON CONFLICT DO NOTHING
RETURNING event_id::text
""")  # fmt: skip

#: Events with their keys, each with its own or not at all, and nothing else in the transaction. A
#: group that is tried again after its commit finds its events without a key here.
_INSERT_KEYED = Prepared(
    "ingest_keyed",
    "uuid[], uuid[], timestamptz[], timestamptz[], timestamptz, text[], text[], text[], text[],"
    " bytea[], jsonb, jsonb",
    f"""
WITH sent AS (
  SELECT * FROM ROWS FROM (unnest($1, $2, $3, $4, $6, $7, $8, $9, $10),
                           jsonb_array_elements($11), jsonb_array_elements($12))
    AS r (user_id, id, received_at, occurred_at, type, source, subject, key, fingerprint,
          attributes, payload)
), free AS (
  INSERT INTO idempotency_keys (user_id, key, event_id, fingerprint, received_at)
  SELECT user_id, key, id, fingerprint, received_at FROM sent WHERE key <> ''
  ON CONFLICT DO NOTHING RETURNING event_id
)
INSERT INTO events ({COLUMNS})
SELECT user_id, id, received_at, occurred_at, $5, type, source, subject, nullif(key, ''),
       nullif(attributes, 'null'), payload
FROM sent WHERE key = '' OR id IN (SELECT event_id FROM free)
ON CONFLICT DO NOTHING RETURNING id::text
""")  # fmt: skip  # noqa: S608  # our own constant

# Users and keys as two lists, as below: of pairs PostgreSQL would read all keys of the users.
_OF_KEYS = "user_id = ANY ($1) AND key = ANY ($2)"
_HOLDERS = Prepared("ingest_holders", "uuid[], text[]", f"""
SELECT user_id::text, key, event_id::text, fingerprint, received_at,
       (SELECT e.status FROM events e WHERE e.user_id = k.user_id AND e.id = k.event_id)
FROM idempotency_keys k WHERE {_OF_KEYS}
""")  # fmt: skip  # noqa: S608  # our own constant
_FREE_KEYS = Prepared("ingest_free_keys", "uuid[], text[], uuid[]", f"""
DELETE FROM idempotency_keys WHERE {_OF_KEYS} AND event_id = ANY ($3)
""")  # fmt: skip  # noqa: S608  # our own constant

# The statements below drive the look-up by two lists, of users and of ids, and never by a join: so
# PostgreSQL goes through the primary key and opens no other partition than those of the ids. While
# it has no statistics of the day's new partition it may use the key for the users alone and filter
# all of their events; the range of the ids keeps that to the events of the same moment.
# `status < 2` means PENDING: written `= 1` it would make the sweeper's partial index eligible,
# which would be read from end to end.
_WAITING = Prepared("ingest_waiting", "uuid[], uuid[], uuid, uuid", f"""
SELECT e.user_id::text, e.id::text, e.type, e.payload::text, e.attempts,
       (SELECT u.email FROM users u WHERE u.id = e.user_id)
FROM events e
WHERE e.user_id = ANY ($1) AND e.id = ANY ($2) AND e.id BETWEEN $3 AND $4
  AND e.status < 2 AND e.attempts = 0 AND coalesce(e.lease_token, '{OFFERED}') = '{OFFERED}'
""")  # fmt: skip  # noqa: S608  # our own constant

_LEASE = Prepared("ingest_lease", "uuid[], uuid[], uuid, uuid, uuid, float8, integer", f"""
UPDATE events e
SET attempts = e.attempts + 1, lease_token = $5,
    next_attempt_at = statement_timestamp() + make_interval(secs => $6)
WHERE e.user_id = ANY ($1) AND e.id = ANY ($2) AND e.id BETWEEN $3 AND $4
  AND e.status < 2 AND e.attempts = $7 AND e.lease_token = '{OFFERED}'
RETURNING e.user_id::text, e.id::text, e.type, e.payload::text, e.attempts,
          (SELECT u.email FROM users u WHERE u.id = e.user_id)
""")  # fmt: skip  # noqa: S608  # our own constant

_FINISH = Prepared(
    "ingest_finish", "uuid[], uuid[], uuid, uuid, smallint[], jsonb, text[], uuid", f"""
UPDATE events e
SET status = r.status, properties = nullif(r.properties, 'null'), processing_error = r.error,
    processed_at = statement_timestamp(), lease_token = NULL
FROM ROWS FROM (unnest($2), unnest($5), jsonb_array_elements($6), unnest($7))
     AS r (id, status, properties, error)
WHERE e.user_id = ANY ($1) AND e.id = ANY ($2) AND e.id BETWEEN $3 AND $4 AND e.id = r.id
  AND e.status < 2 AND coalesce(e.lease_token, '{OFFERED}') = coalesce($8, '{OFFERED}')
""")  # fmt: skip  # noqa: S608  # our own constant

_OFFER = Prepared("ingest_offer", "uuid[], uuid[], uuid, uuid, float8", f"""
UPDATE events e
SET lease_token = '{OFFERED}',
    next_attempt_at = statement_timestamp() + make_interval(secs => $5)
WHERE e.user_id = ANY ($1) AND e.id = ANY ($2) AND e.id BETWEEN $3 AND $4 AND e.status < 2
""")  # fmt: skip  # noqa: S608  # our own constant


def insert_events(connection: Connection, rows: Sequence[NewEvent], next_attempt: datetime) -> None:
    """Write the rows with one COPY inside the connection's transaction, and one alone without.

    Both go through a plain cursor: SQLAlchemy's handling of a statement takes as long as the rest
    of what is done here for one event.
    """
    if len(rows) == 1:
        values = _row(rows[0], next_attempt)
        execute = _INSERT_ONE.call(connection, len(values))
        with connection.connection.cursor() as cursor:  # type: ignore[attr-defined]
            cursor.execute(execute, values)
        return
    text = copy_text(rows, next_attempt)
    # SQLAlchemy's wrapper of the driver connection hands out plain psycopg2 cursors.
    with connection.connection.cursor() as cursor:  # type: ignore[attr-defined]
        cursor.copy_expert(_COPY, io.BytesIO(text), _COPY_PIECE)


def insert_keyed(
    connection: Connection, rows: Sequence[NewEvent], next_attempt: datetime
) -> set[str]:
    """Write events, each whose idempotency key is taken excepted; returns the ids of those written.

    One statement, which needs no transaction around it. As for `insert_keys`, `rows` must be in the
    order of (user_id, key) and hold no key twice; an event without a key is written in any case.
    """
    times = {id(at): f'"{at}"' for row in rows for at in (row.received_at, row.occurred_at)}
    arguments = (
        array(row.user_id for row in rows),
        array(row.id for row in rows),
        array(times[id(row.received_at)] for row in rows),
        array(times[id(row.occurred_at)] for row in rows),
        str(next_attempt),
        text_array(row.type for row in rows),
        text_array(row.source for row in rows),
        text_array(row.subject for row in rows),
        text_array(row.idempotency_key for row in rows),
        array(f'"\\\\x{row.fingerprint.hex()}"' for row in rows),
        # One JSON text each: arrays would have every quotation mark of them escaped.
        "[" + ",".join(row.attributes or "null" for row in rows) + "]",
        "[" + ",".join(row.payload for row in rows) + "]",
    )
    execute = _INSERT_KEYED.call(connection, len(arguments))
    with connection.connection.cursor() as cursor:  # type: ignore[attr-defined]
        cursor.execute(execute, arguments)
        return {written for (written,) in cursor}


def upsert_users(connection: Connection, seen: Sequence[User]) -> None:
    """Write the users that are new, and e-mail address and last_seen_at of the others.

    `seen` is sorted by id and names nobody twice. One round trip, however many they are.
    """
    columns = zip(*((user.id, user.issuer, user.subject, user.email) for user in seen), strict=True)
    connection.exec_driver_sql(_UPSERT_USERS, tuple(map(list, columns)))


def insert_keys(connection: Connection, rows: Sequence[NewEvent]) -> set[str]:
    """Insert idempotency keys that are free and return the ids of the events that have them now.

    `rows` must be sorted by (user_id, key) and hold no key twice: two groups that insert the same
    keys in another order would deadlock, even with DO NOTHING.
    """
    if not rows:
        return set()
    times = {row.received_at: f'"{row.received_at}"' for row in rows}
    arrays = (
        array(row.user_id for row in rows),
        text_array(row.idempotency_key for row in rows),
        array(row.id for row in rows),
        array(f'"\\\\x{row.fingerprint.hex()}"' for row in rows),
        array(times[row.received_at] for row in rows),
    )
    return {written for (written,) in _INSERT_KEYS.run(connection, arrays)}


def holders(connection: Connection, keys: Sequence[IdempotencyKey]) -> list[KeyHolder]:
    """Return who holds those keys that are taken."""
    wanted = set(keys)
    return [
        KeyHolder(
            (user_id, key),
            event_id,
            bytes(fingerprint),
            at,
            EventStatus(status) if status else None,
        )
        for users, texts in key_lookups(keys)
        for user_id, key, event_id, fingerprint, at, status in _HOLDERS.run(
            connection, (array(users), text_array(texts))
        )
        if (user_id, key) in wanted
    ]


def free_keys(connection: Connection, rows: Sequence[NewEvent]) -> None:
    """Delete the idempotency keys that these events hold."""
    ids = array(row.id for row in rows)
    keys = [(row.user_id, row.idempotency_key) for row in rows]
    for users, texts in key_lookups(keys):
        _FREE_KEYS.run(connection, (array(users), text_array(texts), ids))


def waiting(connection: Connection, keys: Sequence[EventKey]) -> list[PendingEvent]:
    """Return the rows that wait for their first delivery; others are left out."""
    return [
        PendingEvent(EventKey(user_id, event_id), type_, payload, attempts, email)
        for lookup in lookups(keys)
        for user_id, event_id, type_, payload, attempts, email in _WAITING.run(
            connection, lookup.arguments
        ).all()
    ]


def lease(
    connection: Connection, keys: Sequence[EventKey], *, attempts: int, token: str, seconds: float
) -> list[PendingEvent]:
    """Count an attempt against offered rows that have `attempts`, and hold them for a time."""
    return [
        PendingEvent(EventKey(row[0], row[1]), *row[2:])
        for lookup in lookups(keys)
        for row in _LEASE.run(connection, (*lookup.arguments, token, seconds, attempts))
    ]


def finish(connection: Connection, results: Sequence[Finished], token: str | None) -> int:
    """Write final states to rows that are PENDING under this token; returns how many were."""
    by_id = {result.key.id: result for result in results}
    written = 0
    for lookup in lookups([result.key for result in results]):
        part = [by_id[event_id] for event_id in lookup.ids]
        written += _FINISH.run(
            connection,
            (
                *lookup.arguments,
                array(str(int(result.status)) for result in part),
                # One JSON text: five hundred parameters would take longer to parse.
                "[" + ",".join(result.properties or "null" for result in part) + "]",
                [result.error for result in part] if any(r.error for r in part) else "{}",
                token,
            ),
        ).rowcount
    return written


def offer(connection: Connection, keys: Sequence[EventKey], seconds: float) -> None:
    """Take the rows from whoever held them, for a recovery that begins within `seconds`."""
    for lookup in lookups(keys):
        _OFFER.run(connection, (*lookup.arguments, seconds))


def _row(event: NewEvent, next_attempt: datetime) -> tuple[str | None, ...]:
    """Return the values of an event in the order of the columns."""
    user, id_, type_, source, subject, key, _, occurred_at, at, attributes, payload = event
    times = (str(at), str(occurred_at), str(next_attempt))
    texts = (type_, source, subject, key or None, attributes or None, payload)
    return (user, id_, *times, *texts)
