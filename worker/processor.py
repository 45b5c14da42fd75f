"""Processes groups of events against the database: the two paths of an event to its final state.

First delivery: one transaction reads, processes, writes back and commits, and counts no attempt
unless an event fails. Recovery: the claim is committed first, as a counted attempt under a lease,
so that a worker which dies takes the attempt with it.
"""

import random
import time
import uuid
from collections.abc import Sequence
from datetime import datetime

import structlog
from sqlalchemy import Connection, Engine

from eventstore import processing
from eventstore.clock import DatabaseClock
from eventstore.errors import PermanentStorageError, TransientStorageError, storage_errors
from eventstore.values import EventKey, EventStatus, Finished, PendingEvent, Postponed
from worker.pipeline import Enricher, process
from worker.timelimit import OutOfTime, TimeLimit

log = structlog.get_logger()

#: Events of one recovery transaction at the first attempt; from the second on each stands alone.
RECOVERY_ROWS = 100
#: Part of the lease that the pipeline may take, so that a lease is never outlived knowingly, and
#: the most seconds: PostgreSQL ends a transaction that idles for ten.
_TIME_SHARE = 2 / 3
_MOST_SECONDS = 8.0
#: Seconds of the longest back-off.
_MAX_BACKOFF = 60.0


class _EventFailure(Exception):
    """One event ran out of time; carries the event, for the transaction is lost."""

    def __init__(self, event: PendingEvent, reason: str) -> None:
        super().__init__(reason)
        self.event = event
        self.reason = reason


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
        #: For the pipeline of one message; it takes effect once somebody starts it.
        self.limit = TimeLimit(min(lease_seconds * _TIME_SHARE, _MOST_SECONDS))

    def first_delivery(self, keys: Sequence[EventKey]) -> None:
        """Process the events that nobody has attempted yet, in one transaction.

        Raises TransientStorageError when the database is away; the sweeper finds the events.
        """
        try:
            self._deliver(keys)
        except TransientStorageError:
            # Mostly a connection that died while it was idle; asking each one before use would
            # cost every message a round trip.
            self._deliver(keys)

    def _deliver(self, keys: Sequence[EventKey]) -> None:
        try:
            with storage_errors(), self._engine.begin() as connection:
                self._synchronise(connection)
                self._complete(connection, processing.waiting(connection, keys), token=None)
        except _EventFailure as failure:
            self._note(failure.event, failure.reason, token=None)
        except PermanentStorageError:
            if len(keys) == 1:
                self._note_unstorable(keys[0])
            else:
                # One event's properties are refused: each alone, so that it fails alone.
                for key in keys:
                    self._deliver([key])

    def recover(self, keys: Sequence[EventKey], *, attempts: int) -> None:
        """Process events that were left over, as attempt number `attempts` + 1.

        What is not begun within the time of a lease is left to the next sweep.
        """
        size = RECOVERY_ROWS if attempts == 0 else 1
        until = time.monotonic() + self._lease_seconds
        for start in range(0, len(keys), size):
            if time.monotonic() > until:
                break
            self._recover_group(keys[start : start + size], attempts)

    def _recover_group(self, keys: Sequence[EventKey], attempts: int) -> None:
        token = str(uuid.uuid4())
        with storage_errors(), self._engine.begin() as connection:
            self._synchronise(connection)
            held = processing.lease(
                connection, keys, attempts=attempts, token=token, seconds=self._lease_seconds
            )
        self._finish_held(held, token)

    def _finish_held(self, held: Sequence[PendingEvent], token: str) -> None:
        try:
            with storage_errors(), self._engine.begin() as connection:
                self._complete(connection, held, token=token)
        except _EventFailure as failure:
            self._note(failure.event, failure.reason, token=token)
        except PermanentStorageError:
            if len(held) == 1:
                self._note(held[0], "the result cannot be stored", token=token)
            else:
                for event in held:
                    self._finish_held([event], token)

    def _complete(
        self, connection: Connection, events: Sequence[PendingEvent], *, token: str | None
    ) -> None:
        """Run the pipeline over claimed events and write all results back."""
        if not events:
            return
        finished: list[Finished] = []
        postponed: list[Postponed] = []
        event, now = events[0], self._clock.now()
        try:
            # Statements have time limits of their own, and nothing may strike in the driver.
            with self.limit.limited():
                for event in events:
                    outcome = self._processed(event, now, counted=token is not None)
                    if isinstance(outcome, Finished):
                        finished.append(outcome)
                    else:
                        postponed.append(outcome)
        except OutOfTime:
            raise _EventFailure(event, "processing ran out of time") from None
        written = processing.finish(connection, finished, token)
        processing.postpone(connection, postponed, token)
        for result in finished:
            if result.status is not EventStatus.PROCESSED:
                name = f"event_{result.status.name.lower()}"
                log.info(name, event_id=result.key.id, reason=result.error)
        log.info("event_processed", count=written, recovered=token is not None)

    def _processed(
        self, event: PendingEvent, now: datetime, *, counted: bool
    ) -> Finished | Postponed:
        try:
            return process(event, now=now, enrichers=self._enrichers)
        except Exception as error:  # noqa: BLE001  # an enricher may raise anything
            log.warning("event_postponed", event_id=event.key.id, error=type(error).__name__)
            reason = f"processing failed: {type(error).__name__}"
            return self._failed(event, reason, counted=counted)

    def _failed(self, event: PendingEvent, reason: str, *, counted: bool) -> Finished | Postponed:
        attempts = event.attempts + (0 if counted else 1)
        if attempts >= self._max_attempts:
            return Finished(event.key, EventStatus.FAILED, None, reason)
        # Full jitter: after an outage the retries come spread out, not as a herd.
        longest = min(_MAX_BACKOFF, 2.0**attempts)
        return Postponed(event.key, random.uniform(0, longest), reason)  # noqa: S311  # no secret

    def _note(self, event: PendingEvent, reason: str, *, token: str | None) -> None:
        """Write one event's failure in a transaction of its own; the first one was rolled back."""
        outcome = self._failed(event, reason, counted=token is not None)
        with storage_errors(), self._engine.begin() as connection:
            if isinstance(outcome, Finished):
                processing.finish(connection, [outcome], token)
            else:
                processing.postpone(connection, [outcome], token)
        log.warning("event_postponed", event_id=event.key.id, reason=reason)

    def _note_unstorable(self, key: EventKey) -> None:
        with storage_errors(), self._engine.begin() as connection:
            for event in processing.waiting(connection, [key]):
                reason = "the result cannot be stored"
                processing.finish(
                    connection, [Finished(event.key, EventStatus.INVALID, None, reason)]
                )

    def _synchronise(self, connection: Connection) -> None:
        if self._clock.stale:
            self._clock.synchronise(connection)
