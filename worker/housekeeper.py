"""Keeps partitions ahead and applies retention, beside the sweeps and never in place of one."""

import time
from collections.abc import Callable

import structlog
from sqlalchemy import Engine

from eventstore import retention, sqlite_retention
from eventstore.errors import StorageError, storage_errors
from eventstore.settings import Settings

log = structlog.get_logger()

#: Seconds between two rounds, and after one that left something to delete.
_SECONDS = 60.0
_MORE_SECONDS = 10.0
#: Seconds for which a step goes on deleting: sweeps wait meanwhile.
_DELETING_SECONDS = 1.0

#: Does a part of a step, in one transaction at most; returns how much, and whether there is more
#: to look at.
Step = Callable[[], tuple[int, bool]]


class Housekeeper:
    """Creates partitions, drops old events and forgets old idempotency keys; one thread's own."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        """Take collaborators; nothing is done yet."""
        self._settings = settings
        self._engine = engine
        self._is_sqlite = engine.dialect.name == "sqlite"
        self._next_at = float("-inf")
        #: Where to go on in the table of idempotency keys.
        self._page = 0

    def keep_when_due(self) -> None:
        """Do a round when it is time for one; raises StorageError."""
        if time.monotonic() < self._next_at:
            return
        # Whatever becomes of this one: a round that fails must not be all that is done.
        self._next_at = time.monotonic() + _SECONDS
        if self.keep():
            self._next_at = time.monotonic() + _MORE_SECONDS

    def keep(self) -> bool:
        """Do a round of some seconds at most; returns whether there is more to look at.

        A step that fails keeps no other from its turn; then the first StorageError is raised.
        """
        steps: dict[str, Step] = {
            "partitions": self._make_partitions,
            "dropped": self._drop_old_events,
            "keys_forgotten": self._forget_old_keys,
        }
        failure: StorageError | None = None
        done: dict[str, int] = {}
        more = False
        for name, step in steps.items():
            try:
                done[name], is_left = self._repeat(step)
                more |= is_left
            except StorageError as error:
                log.warning("housekeeping_failed", step=name, error=str(error))
                failure = failure or error
        if any(done.values()):
            log.info("house_kept", **done)
        if failure is not None:
            raise failure
        return more

    def _repeat(self, step: Step) -> tuple[int, bool]:
        ends_at = time.monotonic() + _DELETING_SECONDS
        total, more = 0, True
        while more and time.monotonic() < ends_at:
            with storage_errors():
                count, more = step()
            total += count
        return total, more

    def _make_partitions(self) -> tuple[int, bool]:
        if self._is_sqlite:
            return 0, False
        days = self._settings.partition_days_ahead
        with self._engine.begin() as connection:
            count = retention.ensure_partitions(connection, days_ahead=days)
        return count, count > 0

    def _drop_old_events(self) -> tuple[int, bool]:
        days = self._settings.retention_days
        if not days:
            return 0, False
        if self._is_sqlite:
            count = sqlite_retention.drop_old_events(self._engine, days=days)
            return count, count == sqlite_retention.DELETE_ROWS
        with self._engine.begin() as connection:
            return retention.drop_old_events(connection, days=days), False

    def _forget_old_keys(self) -> tuple[int, bool]:
        days = self._settings.idempotency_retention_days
        if self._is_sqlite:
            count = sqlite_retention.forget_old_keys(self._engine, days=days)
            return count, count == sqlite_retention.DELETE_ROWS
        with self._engine.begin() as connection:
            count, page = retention.forget_old_keys(connection, days=days, page=self._page)
        # Not before it is committed: what fails is looked at again.
        self._page = page
        return count, page > 0
