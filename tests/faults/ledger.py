"""The test's own record of effects: a row for each write of a final state, by a trigger.

It has no unique key, so an event that is brought to its end twice shows twice, and it is written in
the transaction of the effect, so it shows committed effects only.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import psycopg2

_INSTALL = """
CREATE TABLE fault_ledger (
  user_id uuid NOT NULL, event_id uuid NOT NULL, old_status smallint, new_status smallint,
  attempts smallint, at timestamptz NOT NULL DEFAULT clock_timestamp(),
  backend text NOT NULL DEFAULT current_setting('application_name')
);
CREATE INDEX ON fault_ledger (event_id);
CREATE FUNCTION fault_note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
  INSERT INTO fault_ledger (user_id, event_id, old_status, new_status, attempts)
  VALUES (NEW.user_id, NEW.id,
          CASE TG_OP WHEN 'UPDATE' THEN OLD.status END, NEW.status, NEW.attempts);
  RETURN NULL;
END
$$;
CREATE TRIGGER fault_note AFTER UPDATE ON events FOR EACH ROW
  WHEN (NEW.status > 1 OR NEW.status < OLD.status) EXECUTE FUNCTION fault_note();
CREATE TRIGGER fault_note_new AFTER INSERT ON events FOR EACH ROW
  WHEN (NEW.status > 1) EXECUTE FUNCTION fault_note();
"""

#: One row for each event of a user: what is stored, and how often it came to an end.
_STORED = """
SELECT e.idempotency_key, e.id::text, e.status, e.attempts, e.processing_error,
       e.processed_at IS NOT NULL,
       coalesce(e.processed_at < e.received_at - interval '0.05 s', false),
       e.payload ->> 'key', coalesce((e.payload ->> 'other')::boolean, false),
       (SELECT count(*) FROM fault_ledger l WHERE l.event_id = e.id),
       (SELECT count(*) FROM fault_ledger l WHERE l.event_id = e.id
                                              AND l.new_status < l.old_status)
FROM events e JOIN users u ON u.id = e.user_id
WHERE u.subject = %s
"""

_OPEN = """
SELECT count(*) FROM events e JOIN users u ON u.id = e.user_id
WHERE u.subject = %s AND e.status = 1
"""

_INSTALL_SQLITE = """
CREATE TABLE IF NOT EXISTS fault_ledger (user_id, event_id, old_status, new_status, attempts);
CREATE INDEX IF NOT EXISTS fault_ledger_event_id ON fault_ledger (event_id);
CREATE TRIGGER IF NOT EXISTS fault_note AFTER UPDATE ON events
  WHEN NEW.status > 1 OR NEW.status < OLD.status
BEGIN
  INSERT INTO fault_ledger VALUES (NEW.user_id, NEW.id, OLD.status, NEW.status, NEW.attempts);
END;
"""

_STORED_SQLITE = """
SELECT e.idempotency_key, e.id, e.status, e.attempts, e.processing_error,
       e.processed_at IS NOT NULL, coalesce(e.processed_at < e.received_at - 50000, 0),
       json_extract(e.payload, '$.key'), coalesce(json_extract(e.payload, '$.other'), 0),
       (SELECT count(*) FROM fault_ledger l WHERE l.event_id = e.id),
       (SELECT count(*) FROM fault_ledger l WHERE l.event_id = e.id
                                              AND l.new_status < l.old_status)
FROM events e JOIN users u ON u.id = e.user_id
WHERE u.subject = ?
"""

_OPEN_SQLITE = """
SELECT count(*) FROM events e JOIN users u ON u.id = e.user_id
WHERE u.subject = ? AND e.status = 1
"""


class StoredRow(NamedTuple):
    """An event as it is stored, and what the ledger has of it."""

    key: str
    id: str
    status: int
    attempts: int
    error: str | None
    stamped: bool
    #: Whether processed_at is before received_at, by more than clocks may be apart.
    early: bool
    #: The key that the payload names, and whether it is the content of a deliberate conflict.
    content: str
    other: bool
    effects: int
    steps_back: int


class Ledger(Protocol):
    """The database as the verdict sees it."""

    def install(self) -> None:
        """Create the ledger and its triggers; as the database's owner."""

    def stored(self, subject: str) -> list[StoredRow]:
        """Return what is stored of a user's events, and their effects."""

    def open_rows(self, subject: str) -> int:
        """Return how many events of a user are not final."""


class PostgresLedger:
    """The ledger in PostgreSQL."""

    def __init__(self, url: str) -> None:
        self._url = url

    def install(self) -> None:
        execute(self._url, _INSTALL)

    def stored(self, subject: str) -> list[StoredRow]:
        return [StoredRow(*row) for row in query(self._url, _STORED, subject)]

    def open_rows(self, subject: str) -> int:
        return int(query(self._url, _OPEN, subject)[0][0])


class SqliteLedger:
    """The ledger in SQLite."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def install(self) -> None:
        with closing(sqlite3.connect(self._path, timeout=10)) as connection:
            connection.executescript(_INSTALL_SQLITE)

    def stored(self, subject: str) -> list[StoredRow]:
        # SQLite keeps an id as 32 digits.
        return [
            StoredRow(row[0], str(UUID(row[1])), *row[2:])
            for row in self.query(_STORED_SQLITE, subject)
        ]

    def open_rows(self, subject: str) -> int:
        return int(self.query(_OPEN_SQLITE, subject)[0][0])

    def query(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement on a connection of its own and return the rows."""
        with closing(sqlite3.connect(self._path, timeout=10)) as connection:
            return connection.execute(statement, values).fetchall()


def query(url: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Run one statement on a connection of its own and return the rows."""
    with closing(psycopg2.connect(url, connect_timeout=5)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall() if cursor.description else []


def execute(url: str, *statements: str) -> None:
    """Run statements, each in its own transaction."""
    with closing(psycopg2.connect(url, connect_timeout=5)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
