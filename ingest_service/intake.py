"""Group commit: many waiting callers, one transaction, then the answers, then dispatch.

The only bridge between the event loop and the threads that write. No timer: while one group
commits, the next one gathers.
"""

import asyncio
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import structlog

from eventstore.accept import Verdicts
from eventstore.errors import LockedError, TransientStorageError
from eventstore.settings import Settings
from eventstore.values import KeyConflict, KeysByUser, NotStorable, Submission
from ingest_service.errors import (
    Draining,
    FieldInvalid,
    IdempotencyConflict,
    IngestError,
    Overloaded,
    StorageUnavailable,
    Violation,
)
from ingest_service.writer import Writer

log = structlog.get_logger()

#: Seconds for which a group is written one by one: a caller is answered within three, and a group
#: has waited for two when it turns out that somebody holds what it wants.
_SINGLY_SECONDS = 0.5
#: Rows from which on every writer takes groups. Below, one alone does: a commit of few rows costs
#: as much as one of many. Above, one makes its rows ready while another waits for its commit.
_DEEP = 500

#: Part of the bytes that may wait which one user's atomic calls may fill; one call always may.
_SHARE = 3 / 4

Outcome = Verdicts | IngestError


class _Waiting(NamedTuple):
    submission: Submission
    answer: "asyncio.Future[Verdicts]"


class Intake:
    """Takes submissions from the event loop and answers them after their commit."""

    def __init__(
        self,
        writers: Sequence[Writer],
        settings: Settings,
        dispatch: Callable[[KeysByUser], None],
    ) -> None:
        """Take collaborators; `dispatch` gets the keys of each committed group and never waits."""
        self._settings = settings
        self._dispatch = dispatch
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._deep = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._help if number else self._run,
                args=(writer,),
                name=f"intake-{number}",
                daemon=True,
            )
            for number, writer in enumerate(writers)
        ]
        # What follows belongs to the event loop.
        self._loop: asyncio.AbstractEventLoop
        self._rows = 0
        self._bytes = 0
        #: Of each user of whom something waits.
        self._bytes_of: Counter[str] = Counter()
        self._draining = False
        self._room = asyncio.Event()
        self._room.set()
        self._empty = asyncio.Event()
        self._empty.set()

    def start(self) -> None:
        """Start the writers; call this on the event loop that will submit."""
        self._loop = asyncio.get_running_loop()
        for thread in self._threads:
            thread.start()

    def submit(self, submission: Submission) -> "asyncio.Future[Verdicts]":
        """Hand a submission in; the future is done after the commit.

        It holds the verdicts by position (a position without one was stored as new), or raises
        StorageUnavailable. Raises Draining or Overloaded at once when it is not taken. A caller
        that stops waiting changes nothing: what was taken is written.
        """
        self._require_room()
        answer: asyncio.Future[Verdicts] = self._loop.create_future()
        self._rows += len(submission.events)
        self._bytes += submission.size
        self._bytes_of[submission.user.id] += submission.size
        self._empty.clear()
        if self._rows >= self._settings.waiting_rows or self._bytes >= self._settings.waiting_bytes:
            self._room.clear()
        self._queue.put(_Waiting(submission, answer))
        if self._rows >= _DEEP:
            self._deep.set()
        return answer

    def admit(self, user_id: str, size: int) -> None:
        """Raise Draining or Overloaded when an atomic call must not be handed in.

        That is when `submit` would raise it, and when a user already has so much waiting that
        others would find no room. Streams need no share: they wait, and are not refused.
        """
        self._require_room()
        held = self._bytes_of[user_id]
        if held and held + size > self._settings.waiting_bytes * _SHARE:
            raise Overloaded

    async def room(self) -> None:
        """Wait until the intake takes submissions again; a full intake slows streams this way."""
        await self._room.wait()

    @property
    def has_room(self) -> bool:
        """Whether `submit` would take something now; while draining it says so by raising."""
        return self._draining or self._room.is_set()

    async def drain(self) -> None:
        """Take nothing more, answer what waits, and end the writers."""
        self._draining = True
        await self._empty.wait()
        self._queue.put(None)
        self._deep.set()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _require_room(self) -> None:
        if self._draining:
            raise Draining
        if not self._room.is_set():
            raise Overloaded

    # The writers' side: everything below runs in their threads, except _answer.

    def _run(self, writer: Writer) -> None:
        """Write whatever waits, and wait for it, until the end."""
        writer.connect()
        while group := self._next_group(self._queue.get()):
            self._write(writer, group)
        writer.disconnect()

    def _help(self, writer: Writer) -> None:
        """Write a group each time that many rows wait, until the end."""
        writer.connect()
        while True:
            self._deep.wait()
            # Cleared before the end is looked for: `drain` marks the end first, and then sets this.
            self._deep.clear()
            if self._draining:
                break
            if group := self._next_group(self._taken()):
                self._write(writer, group)
        writer.disconnect()

    def _write(self, writer: Writer, group: list[_Waiting], *, singly: bool = False) -> None:
        outcomes: Sequence[Outcome]
        keys: KeysByUser = {}
        try:
            submissions = [waiting.submission for waiting in group]
            outcomes, keys = writer.write(submissions, hurried=singly)
        except TransientStorageError as error:
            if not singly:
                # Whoever waits behind this group would only wait for the same failure.
                group += self._all_waiting()
                if isinstance(error, LockedError):
                    self._write_singly(writer, group)
                    return
            outcomes = [StorageUnavailable() for _ in group]
            log.warning("storage_unavailable", error=str(error), refused=len(group))
            writer.disconnect()
        except Exception:
            outcomes = [IngestError() for _ in group]
            log.exception("group_failed", submissions=len(group))
            writer.disconnect()
        self._loop.call_soon_threadsafe(self._answer, group, outcomes)
        if keys:
            self._dispatch(keys)

    def _write_singly(self, writer: Writer, group: list[_Waiting]) -> None:
        """Write each submission alone, for one of them wants what somebody else holds."""
        until = time.monotonic() + _SINGLY_SECONDS
        for at, waiting in enumerate(group):
            if time.monotonic() > until:
                rest = group[at:]
                log.warning("storage_unavailable", error="no time is left", refused=len(rest))
                refused = [StorageUnavailable() for _ in rest]
                self._loop.call_soon_threadsafe(self._answer, rest, refused)
                break
            self._write(writer, [waiting], singly=True)
        # Its patience is back with the next connection.
        writer.disconnect()

    def _answer(self, group: Sequence[_Waiting], outcomes: Sequence[Outcome]) -> None:
        for (submission, answer), outcome in zip(group, outcomes, strict=True):
            self._rows -= len(submission.events)
            self._bytes -= submission.size
            self._bytes_of[submission.user.id] -= submission.size
            if not self._bytes_of[submission.user.id]:
                del self._bytes_of[submission.user.id]
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

    def _next_group(self, waiting: _Waiting | None) -> list[_Waiting]:
        """Return this submission and those behind it, within the bounds; none is the end."""
        group: list[_Waiting] = []
        rows = size = 0
        while waiting is not None:
            group.append(waiting)
            rows += len(waiting.submission.events)
            size += waiting.submission.size
            if rows >= self._settings.group_rows or size >= self._settings.group_bytes:
                break
            waiting = self._taken()
        return group

    def _taken(self) -> _Waiting | None:
        """Take the next submission if there is one now; the mark of the end stays where it is."""
        try:
            waiting = self._queue.get_nowait()
        except queue.Empty:
            return None
        if waiting is None:
            self._queue.put(None)
        return waiting

    def _all_waiting(self) -> Iterator[_Waiting]:
        while (waiting := self._taken()) is not None:
            yield waiting


def raise_refusals(verdicts: Verdicts, field: str) -> None:
    """Raise what refuses an atomic submission; `field` has a place for the event's position."""
    for index, verdict in verdicts.items():
        if isinstance(verdict, KeyConflict):
            raise IdempotencyConflict(verdict.event_id, index)
        if isinstance(verdict, NotStorable):
            # A batch is refused as a whole, and nobody knows which of its events it was.
            path = field.format(index) if len(verdicts) == 1 else field.removesuffix("[{}]")
            raise FieldInvalid([Violation(path, verdict.reason)])
