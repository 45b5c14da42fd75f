"""Group commit: many waiting callers, one transaction, then the answers, then dispatch.

The only bridge between the event loop and the database's thread. No timer: while one group
commits, the next one gathers.
"""

import asyncio
import queue
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import NamedTuple

import structlog
from sqlalchemy import Connection, Engine

from eventstore.accept import Verdicts, accept, is_one_statement
from eventstore.clock import DatabaseClock
from eventstore.errors import (
    ContentionError,
    PermanentStorageError,
    TransientStorageError,
    storage_errors,
)
from eventstore.settings import Settings
from eventstore.values import KeysByUser, NotStorable, Submission, User
from ingest_service.errors import Draining, IngestError, Overloaded, StorageUnavailable

log = structlog.get_logger()

#: Times that a group runs again after a deadlock or serialisation failure.
_CONTENTION_TRIES = 3
#: Seconds for which a user's row is not written again, and users that are remembered.
_USER_SECONDS = 600.0
_USERS_REMEMBERED = 100_000
_NOT_STORABLE = "cannot be stored"

Outcome = Verdicts | IngestError


class _Waiting(NamedTuple):
    submission: Submission
    answer: "asyncio.Future[Verdicts]"


class Intake:
    """Takes submissions from the event loop and answers them after their commit."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        clock: DatabaseClock,
        dispatch: Callable[[KeysByUser], None],
    ) -> None:
        """Take collaborators; `dispatch` gets the keys of each committed group and never waits."""
        self._engine = engine
        self._settings = settings
        self._clock = clock
        self._dispatch = dispatch
        self._grace = timedelta(seconds=settings.dispatch_grace_seconds)
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)
        self._connection: Connection | None = None
        self._autocommit = False
        self._seen: OrderedDict[User, float] = OrderedDict()
        # What follows belongs to the event loop.
        self._loop: asyncio.AbstractEventLoop
        self._rows = 0
        self._bytes = 0
        self._draining = False
        self._room = asyncio.Event()
        self._room.set()
        self._empty = asyncio.Event()
        self._empty.set()

    def start(self) -> None:
        """Start the writer; call this on the event loop that will submit."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def submit(self, submission: Submission) -> "asyncio.Future[Verdicts]":
        """Hand a submission in; the future is done after the commit.

        It holds the verdicts by position (a position without one was stored as new), or raises
        StorageUnavailable. Raises Draining or Overloaded at once when it is not taken. A caller
        that stops waiting changes nothing: what was taken is written.
        """
        if self._draining:
            raise Draining
        if not self._room.is_set():
            raise Overloaded
        answer: asyncio.Future[Verdicts] = self._loop.create_future()
        self._rows += len(submission.events)
        self._bytes += submission.size
        self._empty.clear()
        if self._rows >= self._settings.waiting_rows or self._bytes >= self._settings.waiting_bytes:
            self._room.clear()
        self._queue.put(_Waiting(submission, answer))
        return answer

    async def room(self) -> None:
        """Wait until the intake takes submissions again; a full intake slows streams this way."""
        await self._room.wait()

    @property
    def has_room(self) -> bool:
        """Whether `submit` would take something now; while draining it says so by raising."""
        return self._draining or self._room.is_set()

    async def drain(self) -> None:
        """Take nothing more, answer what waits, and end the writer."""
        self._draining = True
        await self._empty.wait()
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    # The writer's side: everything below runs in its thread, except _answer.

    def _run(self) -> None:
        while True:
            group = self._next_group()
            if not group:
                break
            outcomes: list[Outcome] = []
            keys: KeysByUser = {}
            try:
                outcomes, keys = self._write([waiting.submission for waiting in group])
            except TransientStorageError as error:
                # Whoever waits behind this group would only wait for the same failure.
                group += self._all_waiting()
                outcomes = [StorageUnavailable() for _ in group]
                log.warning("storage_unavailable", error=str(error), refused=len(group))
                self._disconnect()
            except Exception:
                outcomes = [IngestError() for _ in group]
                log.exception("group_failed", submissions=len(group))
                self._disconnect()
            self._loop.call_soon_threadsafe(self._answer, group, outcomes)
            if keys:
                self._dispatch(keys)
        self._disconnect()

    def _answer(self, group: Sequence[_Waiting], outcomes: Sequence[Outcome]) -> None:
        for (submission, answer), outcome in zip(group, outcomes, strict=True):
            self._rows -= len(submission.events)
            self._bytes -= submission.size
            if answer.cancelled():
                continue
            if isinstance(outcome, IngestError):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)
        if self._rows < self._settings.waiting_rows and self._bytes < self._settings.waiting_bytes:
            self._room.set()
        if self._rows == 0:
            self._empty.set()

    def _next_group(self) -> list[_Waiting]:
        """Wait for a submission and take what else waits, within the bounds; empty at the end."""
        group: list[_Waiting] = []
        rows = size = 0
        try:
            waiting = self._queue.get()
            while waiting is not None:
                group.append(waiting)
                rows += len(waiting.submission.events)
                size += waiting.submission.size
                if rows >= self._settings.group_rows or size >= self._settings.group_bytes:
                    break
                waiting = self._queue.get_nowait()
        except queue.Empty:
            pass
        return group

    def _all_waiting(self) -> Iterator[_Waiting]:
        while True:
            try:
                waiting = self._queue.get_nowait()
            except queue.Empty:
                return
            if waiting is None:
                self._queue.put(None)
                return
            yield waiting

    def _write(self, submissions: Sequence[Submission]) -> tuple[list[Outcome], KeysByUser]:
        """Write a group, and if its content is refused, its parts."""
        for attempt in range(_CONTENTION_TRIES + 1):
            try:
                return self._write_once(submissions)
            except ContentionError:
                if attempt == _CONTENTION_TRIES:
                    raise
                time.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311  # no secret
            except PermanentStorageError as error:
                if len(submissions) > 1:
                    middle = len(submissions) // 2
                    parts = (submissions[:middle], submissions[middle:])
                    written = [self._write(part) for part in parts]
                    return written[0][0] + written[1][0], _merged(written[0][1], written[1][1])
                return self._write_split(submissions[0], error)
        raise AssertionError("unreachable")

    def _write_split(
        self, submission: Submission, error: PermanentStorageError
    ) -> tuple[list[Outcome], KeysByUser]:
        """Write a submission event by event, so that the one that is refused stands alone."""
        log.warning("content_refused", error=str(error), events=len(submission.events))
        if submission.atomic or len(submission.events) == 1:
            refused = NotStorable(_NOT_STORABLE)
            return [dict.fromkeys(range(len(submission.events)), refused)], {}
        verdicts: Verdicts = {}
        keys: KeysByUser = {}
        for position, event in enumerate(submission.events):
            alone = Submission(user=submission.user, events=[event], atomic=False, size=0)
            (outcome,), written = self._write([alone])
            if isinstance(outcome, dict) and 0 in outcome:
                verdicts[position] = outcome[0]
            keys = _merged(keys, written)
        return [verdicts], keys

    def _write_once(self, submissions: Sequence[Submission]) -> tuple[list[Outcome], KeysByUser]:
        unseen = self._unseen(submissions)
        with storage_errors():
            connection = self._connected()
            self._set_autocommit(connection, is_one_statement(connection, submissions, unseen))
            with connection.begin():
                verdicts, rows = accept(
                    connection,
                    submissions,
                    unseen=unseen,
                    next_attempt=self._clock.now() + self._grace,
                )
        self._remember(unseen)
        keys: KeysByUser = {}
        for row in rows:
            keys.setdefault(row.user_id, []).append(row.id)
        return list(verdicts), keys

    def _set_autocommit(self, connection: Connection, autocommit: bool) -> None:  # noqa: FBT001
        """Spare a group of one statement the round trips of BEGIN and COMMIT."""
        if autocommit is not self._autocommit:
            level = "AUTOCOMMIT" if autocommit else "READ COMMITTED"
            connection.execution_options(isolation_level=level)
            self._autocommit = autocommit

    def _connected(self) -> Connection:
        """Return the writer's own connection; setting the clock now and then also tests it."""
        if self._connection is not None and self._clock.stale:
            try:
                with storage_errors(), self._connection.begin():
                    self._clock.synchronise(self._connection)
            except TransientStorageError:
                self._disconnect()
        if self._connection is None:
            self._connection = self._engine.connect()
            self._autocommit = False
            with self._connection.begin():
                self._clock.synchronise(self._connection)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def _unseen(self, submissions: Sequence[Submission]) -> list[User]:
        oldest = time.monotonic() - _USER_SECONDS
        users = {submission.user for submission in submissions}
        return [user for user in users if self._seen.get(user, float("-inf")) < oldest]

    def _remember(self, users: Sequence[User]) -> None:
        for user in users:
            self._seen[user] = time.monotonic()
            if len(self._seen) > _USERS_REMEMBERED:
                self._seen.popitem(last=False)


def _merged(keys: KeysByUser, more: KeysByUser) -> KeysByUser:
    return {
        user_id: keys.get(user_id, []) + more.get(user_id, []) for user_id in keys.keys() | more
    }
