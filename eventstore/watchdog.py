"""Cuts connections to PostgreSQL that do not answer; knows nothing of what they are used for.

Server-side timeouts and TCP's own do not help when the line is half-open behind a proxy or the
server stands still: somebody acknowledges every byte, and nobody answers. libpq would wait for
ever, and psycopg2 cannot be told not to (its wait callback excludes COPY).
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg2.extensions

#: Seconds for one statement or commit: more than statement_timeout, after which a server that lives
#: has answered.
LIMIT = 6.0
_LOOK = 0.25


class _Watchdog:
    """Looks after the calls that are under way, in one thread that the first of them starts."""

    def __init__(self) -> None:
        self._calls: dict[int, tuple[float, psycopg2.extensions.connection]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def watching(self, connection: "WatchedConnection") -> Iterator[None]:
        if self._thread is None or not self._thread.is_alive():
            self._start()
        self._calls[id(connection)] = (time.monotonic() + connection.limit, connection)
        try:
            yield
        finally:
            self._calls.pop(id(connection), None)

    def _start(self) -> None:
        with self._lock:
            # A fork leaves the thread behind.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(_LOOK)
            now = time.monotonic()
            for deadline, connection in list(self._calls.values()):
                if now > deadline:
                    _cut(connection)


_watchdog = _Watchdog()


class WatchedCursor(psycopg2.extensions.cursor):
    """A cursor whose statements end in time."""

    connection: "WatchedConnection"

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002  # psycopg2's name
        """Execute, and raise OperationalError when no answer comes."""
        with _watchdog.watching(self.connection):
            super().execute(query, vars)

    def executemany(self, query: Any, vars_list: Any) -> None:
        """Execute for each, and raise OperationalError when no answer comes in time for all."""
        with _watchdog.watching(self.connection):
            super().executemany(query, vars_list)

    def copy_expert(self, sql: Any, file: Any, size: int = 8_192) -> None:
        """Copy, and raise OperationalError when no answer comes."""
        with _watchdog.watching(self.connection):
            super().copy_expert(sql, file, size)


class WatchedConnection(psycopg2.extensions.connection):
    """A connection whose commits and statements end in time."""

    #: Seconds; whoever knows that a statement takes longer changes it for that long.
    limit = LIMIT

    def __init__(self, *args: Any, **options: Any) -> None:
        """Connect; connect_timeout bounds that."""
        try:
            super().__init__(*args, **options)
        except psycopg2.Error:
            # The error's traceback knows this object, and would keep its socket open until garbage
            # is collected.
            self.close()
            raise
        self.cursor_factory = WatchedCursor

    def commit(self) -> None:
        """Commit, and raise OperationalError when no answer comes."""
        with _watchdog.watching(self):
            super().commit()

    def rollback(self) -> None:
        """Roll back, and raise OperationalError when no answer comes."""
        with _watchdog.watching(self):
            super().rollback()


def _cut(connection: psycopg2.extensions.connection) -> None:
    """Shut the socket down: whoever waits for it sees the connection end."""
    with suppress(psycopg2.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as s:
        s.shutdown(socket.SHUT_RDWR)
