"""Engines with every timeout set; nothing here connects."""

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from eventstore.settings import SettingsError
from eventstore.watchdog import WatchedConnection

#: Seconds; with the keep-alives below, a dead link is noticed in about five seconds.
_CONNECT_TIMEOUT = 3
_TCP_TIMEOUT_MS = 5_000
_STATEMENT_TIMEOUT_MS = 5_000
_LOCK_TIMEOUT_MS = 2_000
_IDLE_IN_TRANSACTION_MS = 10_000
#: Seconds that a caller waits for a pooled connection, and after which one is renewed.
_POOL_TIMEOUT = 2
_POOL_RECYCLE = 1_800
#: For statements that look rows up by key (postgres.py). Of the day's new partition PostgreSQL has
#: no statistics; it takes it for small and would read all of it, or compare each row with each
#: key. What is left is the primary key, and a hash join with the new values.
_KEYED_OPTIONS = (
    "enable_seqscan=off",
    "enable_bitmapscan=off",
    "enable_nestloop=off",
    "enable_mergejoin=off",
    # Prepared statements: plan once, and choose the partition when the ids are known.
    "plan_cache_mode=force_generic_plan",
)
_SQLITE_BUSY_SECONDS = 5.0
_IN_MEMORY = (None, "", ":memory:", "file::memory:")
#: An option of connections that only read. SQLAlchemy's AUTOCOMMIT would be taken back by letting
#: the driver begin transactions.
_READING = "ingest_reading"
#: Whose turn it is to write, by database file.
_TURNS: dict[str, threading.Lock] = {}


def normalise_url(url: str) -> URL:
    """Parse a database URL; `postgres://` and `postgresql://` mean psycopg2 here.

    Plain `postgresql://` would be psycopg 3 in SQLAlchemy 2.1. Raises ValueError for any other
    database, and SettingsError for what is no URL.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Their texts quote the URL, and so perhaps a part of its password.
        raise SettingsError(
            "INGEST_DATABASE_URL cannot be parsed; write special characters of a password as %40"
        ) from None
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+psycopg2")
    if parsed.drivername not in {"postgresql+psycopg2", "sqlite"}:
        raise ValueError("database URL must be postgresql:// or sqlite:///")
    return parsed


def build_engine(
    url: str, *, name: str, pool_size: int, keyed: bool = False, guarded: bool = True
) -> Engine:
    """Build an engine whose connections carry all timeouts.

    `name` shows in pg_stat_activity. `keyed` is for connections whose every statement looks rows
    up by key; without it PostgreSQL reads whole partitions for the 500 rows of a group.
    `guarded` limits the time of a statement; migrations go without. What `options` of the URL set
    stays, but for what is set here.
    Raises SettingsError for a database in memory, or a file that cannot be where it is to be.
    """
    parsed = normalise_url(url)
    # JSON passes through as text, in both directions: it is parsed once, at the edge.
    common: dict[str, Any] = {
        "hide_parameters": True,
        "json_serializer": str,
        "json_deserializer": str,
    }
    if parsed.get_backend_name() == "sqlite":
        return _build_sqlite(parsed, pool_size, common)
    named = parsed.query.get("options", ())
    named_options = (named,) if isinstance(named, str) else named
    options = [
        "synchronous_commit=on",
        "timezone=UTC",
        "jit=off",
        f"idle_in_transaction_session_timeout={_IDLE_IN_TRANSACTION_MS}",
    ]
    if guarded:
        options += [
            f"statement_timeout={_STATEMENT_TIMEOUT_MS}",
            f"lock_timeout={_LOCK_TIMEOUT_MS}",
        ]
    if keyed:
        options += _KEYED_OPTIONS
    return create_engine(
        parsed,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=_POOL_TIMEOUT,
        pool_recycle=_POOL_RECYCLE,
        # Whoever works on keys tries again when a connection turns out to be dead.
        pool_pre_ping=not keyed,
        connect_args={
            "application_name": name,
            "connect_timeout": _CONNECT_TIMEOUT,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": _TCP_TIMEOUT_MS,
            **({"connection_factory": WatchedConnection} if guarded else {}),
            # What is copied is UTF-8, whatever PGCLIENTENCODING, the role or the database say.
            "client_encoding": "UTF8",
            "options": " ".join([*named_options, *(f"-c {option}" for option in options)]),
        },
        **common,
    )


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Give a connection without a transaction: each statement sees what is committed by then.

    It waits for nobody in SQLite, and spares two round trips in PostgreSQL.
    """
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            with only_reading(connection):
                yield connection
        else:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            yield connection


@contextmanager
def only_reading(connection: Connection) -> Iterator[None]:
    """Have no transaction begun on this connection to SQLite, and so wait for no other."""
    connection.execution_options(**{_READING: True})
    try:
        yield
    finally:
        # Ends what SQLAlchemy takes for one.
        connection.rollback()
        connection.execution_options(**{_READING: False})


def sqlite_file(url: URL) -> Path:
    """Return the file of a SQLite database, which the URL may name as an URI of its own."""
    return Path((url.database or "").removeprefix("file:"))


def _build_sqlite(url: URL, pool_size: int, common: dict[str, Any]) -> Engine:
    if url.database in _IN_MEMORY or url.query.get("mode") == "memory":
        raise SettingsError(
            "INGEST_DATABASE_URL must name a file: each connection would have a database of its own"
            " in memory"
        )
    file = sqlite_file(url)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():  # raises for a name that is too long
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise SettingsError(
            f"set INGEST_DATABASE_URL to a file in a folder that can be used: {error.strerror}"
        ) from None
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=_POOL_TIMEOUT,
        connect_args={"timeout": _SQLITE_BUSY_SECONDS, "check_same_thread": False},
        **common,
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: object) -> None:
        # The driver must not open transactions by itself: `begin` below does.
        connection.isolation_level = None
        _use_wal(connection)
        # FULL: a commit is on disk when it returns, as the promise says.
        connection.execute("PRAGMA synchronous=FULL")

    turn = _TURNS.setdefault(url.database or "", threading.Lock())

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        options = connection.get_execution_options()
        if options.get("isolation_level") == "AUTOCOMMIT" or options.get(_READING):
            return  # A read, which waits for nobody.
        # SQLite lets one write at a time, and whoever waits only looks now and then whether it is
        # its turn: with a worker in this process that is never. A lock wakes the next one.
        deadline = time.monotonic() + _SQLITE_BUSY_SECONDS
        if not turn.acquire(timeout=_SQLITE_BUSY_SECONDS):
            raise TimeoutError("database is busy")
        connection.info["turn"] = turn
        try:
            # What is left after waiting here is how long another process may keep the lock.
            left = max(0, int((deadline - time.monotonic()) * 1000))
            connection.exec_driver_sql(f"PRAGMA busy_timeout={left}")
            # A transaction that first reads and then writes would otherwise fail at once,
            # whatever the busy timeout, when another one wrote in between.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        except BaseException:
            _end_turn(connection)
            raise

    # Both come before the statement itself; the busy timeout covers what is left of it.
    event.listen(engine, "commit", _end_turn)
    event.listen(engine, "rollback", _end_turn)

    return engine


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch a new file to write-ahead logging; whoever does so at the same moment is told off."""
    deadline = time.monotonic() + _SQLITE_BUSY_SECONDS
    while time.monotonic() < deadline:
        # Not covered by the busy timeout: two that wait for each other both fail at once.
        with suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode=WAL")
            return
        time.sleep(0.02)  # SQLite tells nobody when the other one is done.
    connection.execute("PRAGMA journal_mode=WAL")


def _end_turn(connection: Any) -> None:
    turn = connection.info.pop("turn", None)
    if turn is not None:
        turn.release()
