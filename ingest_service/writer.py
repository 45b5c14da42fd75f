"""Writes groups of submissions in one transaction each; what the database refuses stands alone."""

import random
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta

import structlog
from sqlalchemy import Connection, Engine, text

from eventstore.accept import Verdicts, accept, is_one_statement
from eventstore.clock import DatabaseClock
from eventstore.engine import only_reading
from eventstore.errors import (
    ContentionError,
    PermanentStorageError,
    TransientStorageError,
    storage_errors,
)
from eventstore.values import KeysByUser, NotStorable, Submission, User

log = structlog.get_logger()

#: Times that a group runs again after a deadlock or serialisation failure.
_CONTENTION_TRIES = 3
#: Seconds for which a user's row is not written again, and users that are remembered.
_USER_SECONDS = 600.0
_USERS_REMEMBERED = 100_000
#: Seconds without a group after which a connection may have been cut by somebody on the way.
_REST_SECONDS = 10.0
#: Seconds of a round trip from which on a group with keys is one statement, large ones too: that
#: spares four round trips, and takes PostgreSQL some milliseconds more. Waiting for the
#: interpreter's lock on a busy server looks like a round trip of some 20 ms, and must not count.
_FAR_SECONDS = 0.1
#: Seconds of a group's writing after which it is asked anew how far the database is.
_SLOW_SECONDS = 0.25
#: What is waited for a lock by whoever has waited for it already: 50 ms.
_HURRIED = text("SET lock_timeout = 50")
_NOT_STORABLE = "cannot be stored"

Written = tuple[list[Verdicts], KeysByUser]


class Writer:
    """Writes groups on a connection of its own; belongs to one thread."""

    def __init__(self, engine: Engine, clock: DatabaseClock, *, grace_seconds: float) -> None:
        """Take collaborators; after `grace_seconds` the sweeper looks for what is written here."""
        self._engine = engine
        self._clock = clock
        self._grace = timedelta(seconds=grace_seconds)
        self._connection: Connection | None = None
        self._autocommit = False
        self._used_at = 0.0
        self._seen: OrderedDict[User, float] = OrderedDict()

    def connect(self) -> None:
        """Connect before the first group needs it, which is late when the database is slow."""
        # However this fails, the first group tries again and tells its callers.
        with suppress(Exception):
            self._connected()

    def write(self, submissions: Sequence[Submission], *, hurried: bool = False) -> Written:
        """Write a group, or when its content is refused its halves; return what was decided.

        The verdicts are by submission, the keys are those of the rows that were committed. Raises
        TransientStorageError when nobody knows what was. After a `hurried` call locks are waited
        for only for a moment, until `disconnect`.
        """
        try:
            if hurried:
                self._hurry()
            return self._write_patiently(submissions)
        except PermanentStorageError as error:
            if len(submissions) > 1:
                middle = len(submissions) // 2
                verdicts, keys = self.write(submissions[:middle])
                more_verdicts, more_keys = self.write(submissions[middle:])
                return verdicts + more_verdicts, _merged(keys, more_keys)
            user, events, atomic, size = submissions[0]
            if len(events) > 1 and not atomic:
                middle = len(events) // 2
                halves = [
                    Submission(user, part, atomic, size)
                    for part in (events[:middle], events[middle:])
                ]
                (first, second), keys = self.write(halves)
                return [first | {middle + at: verdict for at, verdict in second.items()}], keys
            log.warning("content_refused", error=str(error), events=len(events))
            return [dict.fromkeys(range(len(events)), NotStorable(_NOT_STORABLE))], {}

    def disconnect(self) -> None:
        """Close the connection; the next group opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def _write_patiently(self, submissions: Sequence[Submission]) -> Written:
        for attempt in range(_CONTENTION_TRIES):
            try:
                return self._write_once(submissions, again=attempt > 0)
            except ContentionError:
                time.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311  # no secret
        return self._write_once(submissions, again=True)

    def _write_once(self, submissions: Sequence[Submission], *, again: bool) -> Written:
        unseen = self._unseen(submissions)
        with storage_errors():
            connection = self._connected()
            # The statement that spares round trips may be why this is tried again.
            far = self._clock.round_trip > _FAR_SECONDS and not again
            one = is_one_statement(connection, submissions, unseen, far=far)
            self._set_autocommit(connection, autocommit=one)
            with _by_itself(connection) if one else connection.begin():
                verdicts, rows = accept(
                    connection,
                    submissions,
                    unseen=unseen,
                    next_attempt=self._clock.now() + self._grace,
                    far=far,
                )
        if not far and time.monotonic() - self._used_at > _SLOW_SECONDS:
            self._clock.doubt()
        self._remember(unseen)
        keys: KeysByUser = {}
        for row in rows:
            keys.setdefault(row.user_id, []).append(row.id)
        return verdicts, keys

    def _set_autocommit(self, connection: Connection, *, autocommit: bool) -> None:
        """Spare a single statement the round trips of BEGIN and COMMIT."""
        if autocommit is self._autocommit or connection.dialect.name != "postgresql":
            return
        # Past SQLAlchemy, which notes at each change what is to be put back when the connection
        # returns to its pool, and this one never does.
        connection.connection.dbapi_connection.autocommit = autocommit  # type: ignore[union-attr]
        self._autocommit = autocommit

    def _connected(self) -> Connection:
        """Return the connection; setting the clock now and then, or after a rest, also tests it."""
        now = time.monotonic()
        rested, self._used_at = now - self._used_at > _REST_SECONDS, now
        if self._connection is not None and self._connection.invalidated:
            # SQLAlchemy would connect again by itself, to a session that commits nothing by itself.
            self.disconnect()
        if self._connection is not None and (rested or self._clock.stale):
            try:
                with storage_errors():
                    self._set_clock(self._connection)
            except TransientStorageError:
                self.disconnect()
        if self._connection is None:
            self._connection = self._engine.connect()
            self._autocommit = False
            self._set_clock(self._connection)
        return self._connection

    def _hurry(self) -> None:
        with storage_errors():
            connection = self._connected()
            self._set_autocommit(connection, autocommit=True)
            with _by_itself(connection):
                connection.execute(_HURRIED)

    def _set_clock(self, connection: Connection) -> None:
        if connection.dialect.name == "sqlite":
            # A transaction would wait for whoever writes, and then the group would wait again.
            with only_reading(connection):
                self._clock.synchronise(connection)
            return
        self._set_autocommit(connection, autocommit=True)
        with connection.begin():
            self._clock.synchronise(connection)

    def _unseen(self, submissions: Sequence[Submission]) -> list[User]:
        oldest = time.monotonic() - _USER_SECONDS
        users = {submission.user for submission in submissions}
        return [user for user in users if self._seen.get(user, float("-inf")) < oldest]

    def _remember(self, users: Sequence[User]) -> None:
        for user in users:
            self._seen[user] = time.monotonic()
            if len(self._seen) > _USERS_REMEMBERED:
                self._seen.popitem(last=False)


@contextmanager
def _by_itself(connection: Connection) -> Iterator[None]:
    """Run a statement that commits itself, and what is read after it."""
    try:
        yield
    finally:
        if connection.in_transaction():  # SQLAlchemy begins one for whatever goes through it
            connection.rollback()


def _merged(keys: KeysByUser, more: KeysByUser) -> KeysByUser:
    return {
        user_id: keys.get(user_id, []) + more.get(user_id, []) for user_id in keys.keys() | more
    }
