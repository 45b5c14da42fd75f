"""Finds what was committed and not processed in time, and has it processed."""

import threading
import time
from contextlib import suppress

import structlog
from sqlalchemy import Engine

from eventstore import processing
from eventstore.errors import StorageError, storage_errors
from eventstore.settings import Settings
from eventstore.values import DueEvent
from worker.broker import QUEUE, RECOVERY_QUEUE
from worker.dispatch import BrokerUnavailable, Dispatcher, by_attempts
from worker.housekeeper import Housekeeper
from worker.processor import Processor

log = structlog.get_logger()

#: Rows that one sweep takes.
SWEEP_ROWS = 1_000
#: Messages in the queue of first deliveries from which on the workers are behind, not the hints
#: lost: rows that were never attempted are then left to their messages, for some seconds more.
_DEEP_QUEUE = 200
_PATIENCE = 20.0
#: Recovery messages beyond which no more are sent.
_MOST_RECOVERIES = 50
#: Seconds without an empty recovery queue after which the sweeper processes by itself.
_STUCK_AFTER = 10.0
#: Seconds after which a message that the sweeper sent counts as lost; a second message for the same
#: rows takes nothing, so this is short: Redis may be wiped again and again.
_AGAIN_AFTER = 5.0


class Sweeper:
    """Sweeps in a thread; across all processes one sweep takes rows at a time."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        dispatcher: Dispatcher,
        processor: Processor,
        housekeeper: Housekeeper,
    ) -> None:
        """Take collaborators; `start` starts the thread, which also lets the house be kept."""
        self._settings = settings
        self._engine = engine
        self._dispatcher = dispatcher
        self._processor = processor
        self._housekeeper = housekeeper
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)
        self._drained_at = time.monotonic()

    def start(self) -> None:
        """Start sweeping."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the sweep that is under way."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(self._settings.lease_seconds)

    def sweep(self) -> int:
        """Sweep once; returns how many rows were taken.

        Raises StorageError when the database is away. When the broker is away, the rows are
        processed here.
        """
        due, broker_up = self._take()
        if not due:
            return 0
        log.info("event_redispatched", count=len(due), through_broker=broker_up)
        if broker_up:
            try:
                self._dispatcher.recoveries(due)
            except BrokerUnavailable as error:
                log.warning("broker_unavailable", error=str(error))
                broker_up = False
        if not broker_up:
            for attempts, keys in by_attempts(due):
                self._processor.recover(keys, attempts=attempts)
        return len(due)

    def _take(self) -> tuple[list[DueEvent], bool]:
        try:
            deep = self._dispatcher.waiting(QUEUE) >= _DEEP_QUEUE
            patience = _PATIENCE if deep else 0.0
            recoveries = self._dispatcher.waiting(RECOVERY_QUEUE)
            now = time.monotonic()
            if recoveries == 0:
                self._drained_at = now
            # Messages that nobody can finish hold up a consumer for good; the rows must go on.
            broker_up = now - self._drained_at < _STUCK_AFTER
            if broker_up and recoveries >= _MOST_RECOVERIES:
                return [], True
        except BrokerUnavailable:
            broker_up, patience = False, 0.0
        with storage_errors(), self._engine.begin() as connection:
            if not processing.try_sweep_lock(connection):
                return [], broker_up
            due = processing.take_due(
                connection,
                limit=SWEEP_ROWS,
                again_after=_AGAIN_AFTER,
                max_attempts=self._settings.max_attempts,
                patience=patience,
            )
        return due, broker_up

    def _run(self) -> None:
        down = False
        while not self._stopped.wait(self._settings.sweep_seconds):
            try:
                while self.sweep() == SWEEP_ROWS and not self._stopped.is_set():
                    pass
                down = False
            except StorageError as error:
                if not down:
                    log.warning("sweep_failed", error=str(error))
                down = True
            except Exception:
                # The thread must outlive whatever one sweep meets.
                log.exception("sweep_failed")
            # By itself, so that neither of them fails for the other's reasons; it tells its own.
            try:
                with suppress(StorageError):
                    self._housekeeper.keep_when_due()
            except Exception:
                log.exception("housekeeping_failed")
