"""The bulk statements in PostgreSQL's own words: COPY in, arrays for keyed look-ups.

`sqlite.py` holds the same functions for the embedded mode. Arrays are written as literals where
the values are UUIDs or numbers, because one long string binds faster than a list of 500.
"""

import io
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection

from eventstore.lookups import array, lookups
from eventstore.values import EventKey, EventStatus, Finished, NewEvent, PendingEvent

_COPY_COLUMNS = (
    "user_id, id, received_at, occurred_at, next_attempt_at, type, source, subject,"
    " idempotency_key, attributes, payload"
)
_COPY = "COPY events (" + _COPY_COLUMNS + ") FROM STDIN"
_COPY_TABS = _COPY_COLUMNS.count(",")
#: Stands for SQL's NULL until backslashes are escaped; no event can hold it.
_NULL = "\0"
#: One read of the buffer per group: psycopg2 would otherwise hand it over in 8 KiB pieces.
_COPY_PIECE = 1 << 20


class _Prepared(NamedTuple):
    """A statement that each connection parses and plans once: a fifth of the time of a large one.

    The first four parameters of those that look rows up are those of a `Lookup`.
    """

    name: str
    types: str
    text: str

    def run(self, connection: Connection, arguments: Sequence[Any]) -> Any:
        """Execute it, and prepare it first where that has not been done."""
        execute = self.call(connection, len(arguments))
        return connection.exec_driver_sql(execute, tuple(arguments))

    def call(self, connection: Connection, count: int) -> str:
        """Return the statement that executes it with `count` values; it is prepared by then."""
        prepared = connection.info.setdefault("prepared", set())
        if self.name not in prepared:
            try:
                with connection.connection.cursor() as cursor:  # type: ignore[attr-defined]
                    cursor.execute(f"PREPARE {self.name} ({self.types}) AS {self.text}")
            except BaseException:
                # Nobody knows whether the server has it now.
                connection.invalidate()
                raise
            prepared.add(self.name)
        return f"EXECUTE {self.name} ({', '.join(['%s'] * count)})"


_ROW_TYPES = (
    "uuid, uuid, timestamptz, timestamptz, timestamptz, text, text, text, text, jsonb, jsonb"
)
#: One event alone: in one round trip, where COPY takes two.
_INSERT_ONE = _Prepared(
    "ingest_insert",
    _ROW_TYPES,
    f"INSERT INTO events ({_COPY_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",  # noqa: S608
)

_INSERT_KEYS = _Prepared("ingest_keys", "uuid[], text[], uuid[], bytea[], timestamptz[]", """
INSERT INTO idempotency_keys (user_id, key, event_id, fingerprint, received_at)
SELECT * FROM unnest($1, $2, $3, $4, $5)
ON CONFLICT DO NOTHING
RETURNING event_id::text
""")  # fmt: skip

#: Events with their keys, each with its own or not at all, and nothing else in the transaction.
_INSERT_KEYED = _Prepared(
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
INSERT INTO events ({_COPY_COLUMNS})
SELECT user_id, id, received_at, occurred_at, $5, type, source, subject, nullif(key, ''),
       nullif(attributes, 'null'), payload
FROM sent WHERE key = '' OR id IN (SELECT event_id FROM free)
RETURNING id::text
""")  # fmt: skip  # noqa: S608  # our own constant

# The statements below drive the look-up by two lists, of users and of ids, and never by a join: so
# PostgreSQL goes through the primary key and opens no other partition than those of the ids. While
# it has no statistics of the day's new partition it may use the key for the users alone and filter
# all of their events; the range of the ids keeps that to the events of the same moment.
# `status < 2` means PENDING: written `= 1` it would make the sweeper's partial index eligible,
# which would be read from end to end.
_WAITING = _Prepared("ingest_waiting", "uuid[], uuid[], uuid, uuid", """
SELECT e.user_id::text, e.id::text, e.type, e.payload::text, e.attempts,
       (SELECT u.email FROM users u WHERE u.id = e.user_id)
FROM events e
WHERE e.user_id = ANY ($1) AND e.id = ANY ($2) AND e.id BETWEEN $3 AND $4
  AND e.status < 2 AND e.attempts = 0 AND e.lease_token IS NULL
""")  # fmt: skip

_LEASE = _Prepared("ingest_lease", "uuid[], uuid[], uuid, uuid, uuid, float8, integer", """
UPDATE events e
SET attempts = e.attempts + 1, lease_token = $5,
    next_attempt_at = statement_timestamp() + make_interval(secs => $6)
WHERE e.user_id = ANY ($1) AND e.id = ANY ($2) AND e.id BETWEEN $3 AND $4
  AND e.status < 2 AND e.attempts = $7 AND e.lease_token IS NULL
RETURNING e.user_id::text, e.id::text, e.type, e.payload::text, e.attempts,
          (SELECT u.email FROM users u WHERE u.id = e.user_id)
""")  # fmt: skip

_FINISH = _Prepared(
    "ingest_finish", "uuid[], uuid[], uuid, uuid, smallint[], jsonb, text[], uuid", """
UPDATE events e
SET status = r.status, properties = nullif(r.properties, 'null'), processing_error = r.error,
    processed_at = statement_timestamp(), lease_token = NULL
FROM ROWS FROM (unnest($2), unnest($5), jsonb_array_elements($6), unnest($7))
     AS r (id, status, properties, error)
WHERE e.user_id = ANY ($1) AND e.id = ANY ($2) AND e.id BETWEEN $3 AND $4 AND e.id = r.id
  AND e.status < 2 AND e.lease_token IS NOT DISTINCT FROM $8
""")  # fmt: skip

_END_LEASES = _Prepared("ingest_end_leases", "uuid[], uuid[], uuid, uuid, float8", """
UPDATE events e
SET lease_token = NULL, next_attempt_at = statement_timestamp() + make_interval(secs => $5)
WHERE e.user_id = ANY ($1) AND e.id = ANY ($2) AND e.id BETWEEN $3 AND $4 AND e.status < 2
""")  # fmt: skip

_STATUSES = _Prepared("ingest_statuses", "uuid[], uuid[], uuid, uuid", """
SELECT e.user_id::text, e.id::text, e.status
FROM events e
WHERE e.user_id = ANY ($1) AND e.id = ANY ($2) AND e.id BETWEEN $3 AND $4
""")  # fmt: skip


def insert_events(connection: Connection, rows: Sequence[NewEvent], next_attempt: datetime) -> None:
    """Write the rows with one COPY inside the connection's transaction, and one alone without.

    Both go through a plain cursor: SQLAlchemy's handling of a statement takes as long as the rest
    of what is done here for one event.
    """
    if len(rows) == 1:
        execute = _INSERT_ONE.call(connection, _COPY_TABS + 1)
        with connection.connection.cursor() as cursor:  # type: ignore[attr-defined]
            cursor.execute(execute, _row(rows[0], next_attempt))
        return
    due = str(next_attempt)
    lines = []
    received_at, received = next_attempt, due
    for user, id_, type_, source, subject, key, _, occurred_at, at, attributes, payload in rows:
        # The events of one message share one datetime object, mostly for both times.
        if at is not received_at:
            received_at, received = at, str(at)
        occurred = received if occurred_at is at else str(occurred_at)
        lines.append(
            f"{user}\t{id_}\t{received}\t{occurred}\t{due}\t{type_}\t{source}\t{subject}"
            f"\t{key or _NULL}\t{attributes or _NULL}\t{payload}\n".encode()
        )
    # Bytes from here on: one character beyond Latin-1 would make a text of all rows four times as
    # large. A backslash is the only one that can occur here and means something to COPY.
    text = b"".join(lines).replace(b"\\", b"\\\\").replace(_NULL.encode(), b"\\N")
    if text.count(b"\t") != _COPY_TABS * len(rows) or text.count(b"\n") != len(rows):
        # The edge lets no control character through; this keeps a row from ever forging another.
        raise ValueError("control character in an event")
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
        _text_array(row.type for row in rows),
        _text_array(row.source for row in rows),
        _text_array(row.subject for row in rows),
        _text_array(row.idempotency_key for row in rows),
        array(f'"\\\\x{row.fingerprint.hex()}"' for row in rows),
        # One JSON text each: arrays would have every quotation mark of them escaped.
        "[" + ",".join(row.attributes or "null" for row in rows) + "]",
        "[" + ",".join(row.payload for row in rows) + "]",
    )
    execute = _INSERT_KEYED.call(connection, len(arguments))
    with connection.connection.cursor() as cursor:  # type: ignore[attr-defined]
        cursor.execute(execute, arguments)
        return {written for (written,) in cursor}


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
        _text_array(row.idempotency_key for row in rows),
        array(row.id for row in rows),
        array(f'"\\\\x{row.fingerprint.hex()}"' for row in rows),
        array(times[row.received_at] for row in rows),
    )
    return {written for (written,) in _INSERT_KEYS.run(connection, arrays)}


def statuses(connection: Connection, keys: Sequence[EventKey]) -> dict[EventKey, EventStatus]:
    """Return the status of those events that exist."""
    return {
        EventKey(row[0], row[1]): EventStatus(row[2])
        for lookup in lookups(keys)
        for row in _STATUSES.run(connection, lookup.arguments)
    }


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
    """Count an attempt against the rows that still have `attempts`, and hold them for a time."""
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


def end_leases(connection: Connection, keys: Sequence[EventKey], seconds: float) -> None:
    """Take the rows from whoever held them, and leave them alone for `seconds`."""
    for lookup in lookups(keys):
        _END_LEASES.run(connection, (*lookup.arguments, seconds))


def _row(event: NewEvent, next_attempt: datetime) -> tuple[str | None, ...]:
    """Return the values of an event in the order of the columns."""
    user, id_, type_, source, subject, key, _, occurred_at, at, attributes, payload = event
    times = (str(at), str(occurred_at), str(next_attempt))
    texts = (type_, source, subject, key or None, attributes or None, payload)
    return (user, id_, *times, *texts)


def _text_array(texts: Iterable[str]) -> str:
    """Return texts as the literal of an array; they hold no control characters."""
    escaped = _NULL.join(texts).replace("\\", "\\\\").replace('"', '\\"')
    return '{"' + escaped.replace(_NULL, '","') + '"}'
