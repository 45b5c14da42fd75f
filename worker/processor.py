"""Processes groups of events against the database: the two paths of an event to its final state.

First delivery: events are read, processed and written back, which counts no attempt unless an event
fails. Recovery: the claim is committed first, as a counted attempt under a lease, so that a worker
which dies takes the attempt with it. No transaction is open while an enricher works.
"""

import os
import random
import time
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import NoReturn

import structlog
from sqlalchemy import Connection, Engine

from eventstore import processing
from eventstore.clock import DatabaseClock
from eventstore.engine import reading
from eventstore.errors import PermanentStorageError, TransientStorageError, storage_errors
from eventstore.values import EventKey, EventStatus, Finished, PendingEvent, Postponed
from worker.pipeline import Enricher, process
from worker.properties import UnstorableResult
from worker.solitude import Solitude
from worker.timelimit import NoThread, OutOfTime, TimeLimit

log = structlog.get_logger()

#: Events of one recovery transaction at the first attempt; from the second on each stands alone.
RECOVERY_ROWS = 100
#: Part of the lease that the pipeline may take, so that a lease is never outlived knowingly, and
#: the most seconds: a message's other events wait as long.
_TIME_SHARE = 2 / 3
_MOST_SECONDS = 8.0
#: Part of the lease that an enricher has to end when it is told to.
_GRACE_SHARE = 1 / 12
#: Enrichers that never returned, beyond which the process ends: each keeps a thread.
_MOST_STUCK = 100
#: Seconds of the longest back-off.
_MAX_BACKOFF = 60.0
_UNSTORABLE = "the result cannot be stored"
#: Characters of an exception's name in a reason and in the log; an enricher may call it anything.
_LONGEST_NAME = 100


class Processor:
    """Brings events to their final state; safe to call from several threads."""

    def __init__(
        self,
        engine: Engine,
        *,
        enrichers: Sequence[Enricher],
        max_attempts: int,
        lease_seconds: float,
    ) -> None:
        """Take what the statements need; nothing connects yet."""
        self._engine = engine
        self._enrichers = enrichers
        self._max_attempts = max_attempts
        self._lease_seconds = lease_seconds
        self._clock = DatabaseClock()
        self._solitude = Solitude()
        #: For the pipeline of one message.
        self._seconds = min(lease_seconds * _TIME_SHARE, _MOST_SECONDS)
        self._limit = TimeLimit(self._seconds, grace_seconds=lease_seconds * _GRACE_SHARE)

    @property
    def is_reserved(self) -> bool:
        """Whether an event is tried alone, or waits until the others are done for that."""
        return self._solitude.is_claimed

    def first_delivery(self, keys: Sequence[EventKey]) -> None:
        """Process the events that nobody has attempted yet.

        Raises TransientStorageError when the database is away; the sweeper finds the events.
        """
        with self._solitude.beside_others():
            try:
                self._deliver(keys)
            except TransientStorageError:
                # Mostly a connection that died while it was idle; asking each one before use would
                # cost every message a round trip.
                self._deliver(keys)

    def _deliver(self, keys: Sequence[EventKey]) -> None:
        with storage_errors(), reading(self._engine) as connection:
            self._synchronise(connection)
            found = processing.waiting(connection, keys)
        self._finish_found(found, token=None)

    def recover(self, keys: Sequence[EventKey], *, attempts: int) -> None:
        """Process events that were left over, as attempt number `attempts` + 1.

        What is not begun within the time of a lease is left to the next sweep. An event whose last
        attempt did not finish, perhaps because another one crashed the process, is tried once more
        while nothing else is tried in this process.
        """
        size = RECOVERY_ROWS if attempts == 0 else 1
        is_extra = attempts >= self._max_attempts
        until = time.monotonic() + self._lease_seconds
        for start in range(0, len(keys), size):
            if time.monotonic() > until:
                break
            with self._solitude.alone() if is_extra else self._solitude.beside_others():
                self._recover_group(keys[start : start + size], attempts)

    def _recover_group(self, keys: Sequence[EventKey], attempts: int) -> None:
        token = str(uuid.uuid4())
        with storage_errors(), self._engine.begin() as connection:
            self._synchronise(connection)
            held = processing.lease(
                connection, keys, attempts=attempts, token=token, seconds=self._lease_seconds
            )
        self._finish_found(held, token)

    def _finish_found(self, found: Sequence[PendingEvent], token: str | None) -> None:
        try:
            self._complete(found, token=token)
        except PermanentStorageError:
            if len(found) == 1:
                self._note_unstorable(found[0], token)
            else:
                # One event's properties are refused: each alone, so that it fails alone.
                for event in found:
                    self._finish_found([event], token)

    def _complete(self, events: Sequence[PendingEvent], *, token: str | None) -> None:
        """Run the pipeline over events and write all results back."""
        if not events:
            return
        outcomes = self._outcomes(events, counted=token is not None)
        finished = [outcome for outcome in outcomes if isinstance(outcome, Finished)]
        postponed = [outcome for outcome in outcomes if isinstance(outcome, Postponed)]
        with storage_errors(), self._engine.begin() as connection:
            written = processing.finish(connection, finished, token)
            processing.postpone(connection, postponed, token)
        for result in finished:
            if result.status is not EventStatus.PROCESSED:
                name = f"event_{result.status.name.lower()}"
                log.info(name, event_id=result.key.id, reason=result.error)
        log.info("event_processed", count=written, recovered=token is not None)
        if self._limit.stuck > _MOST_STUCK:
            _end_process("too many enrichers never returned", outcomes[-1].key)

    def _outcomes(
        self, events: Sequence[PendingEvent], *, counted: bool
    ) -> list[Finished | Postponed]:
        """Run the pipeline over events, up to one that runs out of time."""
        outcomes: list[Finished | Postponed] = []
        now = self._clock.now()
        until = time.monotonic() + self._seconds

        def work() -> None:
            for event in events:
                outcome = self._processed(event, now, counted=counted)
                if time.monotonic() > until:
                    # Perhaps it swallowed the strike: what follows is not to blame.
                    raise OutOfTime
                # Each for itself: whoever strikes sees how far it came.
                outcomes.append(outcome)

        try:
            self._limit.run(work)
        except OutOfTime:
            # A copy, for the work may still be going on.
            in_time = outcomes.copy()
            if len(in_time) < len(events):
                event, reason = events[len(in_time)], "processing ran out of time"
                log.warning("event_postponed", event_id=event.key.id, reason=reason)
                in_time.append(self._failed(event, reason, counted=counted))
            return in_time
        except NoThread:
            # Going on would use up the attempts of whatever comes here.
            _end_process("no thread can be started", events[0].key)
        return outcomes

    def _processed(
        self, event: PendingEvent, now: datetime, *, counted: bool
    ) -> Finished | Postponed:
        try:
            return process(event, now=now, enrichers=self._enrichers)
        except OutOfTime:
            # It ends the work, and may strike in the handler below as well.
            raise
        except UnstorableResult as error:
            reason = f"{_UNSTORABLE}: {error}"
        except BaseException as error:  # noqa: BLE001  # an enricher may raise SystemExit, too
            reason = f"processing failed: {_name_of(error)}"
        log.warning("event_postponed", event_id=event.key.id, reason=reason)
        return self._failed(event, reason, counted=counted)

    def _failed(self, event: PendingEvent, reason: str, *, counted: bool) -> Finished | Postponed:
        attempts = event.attempts + (0 if counted else 1)
        if attempts >= self._max_attempts:
            return Finished(event.key, EventStatus.FAILED, None, reason)
        # Full jitter: after an outage the retries come spread out, not as a herd.
        longest = min(_MAX_BACKOFF, 2.0**attempts)
        return Postponed(event.key, random.uniform(0, longest), reason)  # noqa: S311  # no secret

    def _note_unstorable(self, event: PendingEvent, token: str | None) -> None:
        outcome = self._failed(event, _UNSTORABLE, counted=token is not None)
        with storage_errors(), self._engine.begin() as connection:
            if isinstance(outcome, Finished):
                processing.finish(connection, [outcome], token)
            else:
                processing.postpone(connection, [outcome], token)
        log.warning("event_postponed", event_id=event.key.id, reason=_UNSTORABLE)

    def _synchronise(self, connection: Connection) -> None:
        if self._clock.stale:
            self._clock.synchronise(connection)


def _name_of(error: BaseException) -> str:
    """Return the name of an exception's class, short and printable."""
    name = type(error).__name__[:_LONGEST_NAME]
    return "".join(c if c.isprintable() else "?" for c in name)


def _end_process(reason: str, key: EventKey) -> NoReturn:
    """End at once: an end in good order would be one of waiting, and nothing is lost."""
    log.error("process_ended", reason=reason, event_id=key.id)
    os._exit(1)
