"""What an operator should know of a database: read only, and cheap."""

import re
from dataclasses import dataclass

from sqlalchemy import Column, Connection, MetaData, String, Table, inspect, select, text

from eventstore.schema import REVISION

#: Alembic's; made once, since SQLAlchemy keeps what it compiled for each of hundreds.
_VERSION = Table("alembic_version", MetaData(), Column("version_num", String))

#: How our revisions are named.
NUMBER = re.compile(r"\d{4}")
#: The only encoding of a PostgreSQL database that holds every event.
ENCODING = "UTF8"
_READ_ONLY = text("SELECT current_setting('transaction_read_only')")

#: What must be on for "committed" to mean "survives a power cut" (PostgreSQL manual, 20.5). Our
#: connections switch synchronous_commit on for themselves, whatever is set for server, database and
#: role; off here means that something in between keeps them from it.
_DURABILITY = ("fsync", "full_page_writes", "synchronous_commit")

#: What deploy/roles.sql grants, as far as it is there; SELECT on events_default is `doctor`'s.
_LACKS = text("""
SELECT privilege || ' on ' || name
FROM (VALUES ('alembic_version', 'SELECT'), ('events_default', 'SELECT'),
             ('users', 'SELECT'), ('users', 'INSERT'), ('users', 'UPDATE'),
             ('events', 'SELECT'), ('events', 'INSERT'), ('events', 'UPDATE'),
             ('idempotency_keys', 'SELECT'), ('idempotency_keys', 'INSERT'),
             ('idempotency_keys', 'DELETE')) AS needed (name, privilege)
WHERE NOT has_table_privilege(to_regclass(name), privilege)
UNION ALL
SELECT 'EXECUTE on ' || proname
FROM pg_proc
WHERE oid IN (to_regproc('ingest_ensure_partitions'), to_regproc('ingest_drop_partitions'))
  AND NOT has_function_privilege(oid, 'EXECUTE')
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseFacts:
    """The facts of a PostgreSQL server and of our schema in it."""

    #: Such as 150018.
    version: int
    #: The durability settings that are off.
    unsafe: tuple[str, ...]
    #: Connections that the server takes, and those that are in use.
    max_connections: int
    connections: int
    #: Daily partitions from today on, and whether the default partition holds rows.
    partitions_ahead: int
    default_partition_used: bool
    #: Seconds for which the oldest pending event has been due, 0 when none is.
    overdue_seconds: float
    #: Such as UTF8.
    encoding: str
    #: Whether our role may create tables, and change or drop ours, for which it need only have the
    #: rights of their owner. Serving and working need neither.
    may_create: bool
    owns_tables: bool


def is_current(connection: Connection) -> bool:
    """Whether the schema is at the revision that this version was written for, or a later one.

    While versions change, the database is migrated first: a migration leaves the version before it
    at work.
    """
    if not inspect(connection).has_table(_VERSION.name):
        return False
    found = connection.scalars(select(_VERSION.c.version_num)).all()
    return len(found) == 1 and is_known_or_later(found[0])


def is_known_or_later(revision: str) -> bool:
    """Whether this is our revision, or one of a later version, which are numbered like ours."""
    return NUMBER.fullmatch(revision) is not None and revision >= REVISION


def is_writable(connection: Connection) -> bool:
    """Whether the database takes writes: a standby does not, nor what was set to read only."""
    if connection.dialect.name != "postgresql":
        return True
    return bool(connection.execute(_READ_ONLY).scalar_one() == "off")


def lacking_rights(connection: Connection) -> tuple[str, ...]:
    """Return what our role may not, such as `INSERT on events`, and needs; PostgreSQL only."""
    return tuple(connection.execute(_LACKS).scalars())


def inspect_file(connection: Connection) -> tuple[str, str]:
    """Return the journal mode of a SQLite file, and the first damage or "ok"; reads all of it."""
    journal = connection.execute(text("PRAGMA journal_mode")).scalar_one()
    return journal, connection.execute(text("PRAGMA quick_check(1)")).scalar_one()


def inspect_database(connection: Connection) -> DatabaseFacts:
    """Read the facts; PostgreSQL with a current schema only."""
    unsafe = tuple(
        name
        for name in _DURABILITY
        if connection.execute(text("SELECT current_setting(:name)"), {"name": name}).scalar_one()
        == "off"
    )
    row = connection.execute(
        text("""
        SELECT current_setting('server_version_num')::int AS version,
               current_setting('max_connections')::int AS max_connections,
               (SELECT count(*) FROM pg_stat_activity) AS connections,
               (SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                WHERE i.inhparent = 'events'::regclass
                  AND c.relname >= 'events_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')
                  AND c.relname ~ '^events_[0-9]{8}$') AS partitions_ahead,
               EXISTS (SELECT FROM events_default) AS default_partition_used,
               (SELECT greatest(0, coalesce(extract(epoch FROM now() - min(next_attempt_at)), 0))
                FROM events WHERE status = 1)::float8 AS overdue_seconds,
               current_setting('server_encoding') AS encoding,
               has_schema_privilege(current_schema(), 'CREATE') AS may_create,
               EXISTS (SELECT FROM pg_class
                       WHERE oid IN ('users'::regclass, 'events'::regclass,
                                     'idempotency_keys'::regclass)
                         AND pg_has_role(relowner, 'USAGE')) AS owns_tables
        """)
    ).one()
    return DatabaseFacts(unsafe=unsafe, **row._mapping)  # noqa: SLF001  # public in spite of its name
