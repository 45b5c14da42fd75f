"""What runs inside a worker process: two actors, the sweeper, and a watch over the parent."""

import contextlib
import gc
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import dramatiq
import structlog
from dramatiq.middleware import Middleware
from sqlalchemy import Engine

from eventstore.errors import TransientStorageError
from eventstore.memory import keep_together
from eventstore.settings import Settings
from eventstore.values import EventKey
from worker.broker import QUEUE, RECOVERY_QUEUE
from worker.dispatch import PROCESS_ACTOR, RECOVER_ACTOR, Dispatcher
from worker.housekeeper import Housekeeper
from worker.pipeline import installed_enrichers
from worker.processor import Processor
from worker.sweeper import Sweeper

log = structlog.get_logger()

#: Objects from which on garbage is collected.
_GARBAGE = 20_000
#: Most keys of a message that are looked at, whatever a stranger wrote into the queue.
_MOST_KEYS = 10_000
#: Largest number of attempts that the column holds.
_MOST_ATTEMPTS = (1 << 31) - 1
#: Seconds between two looks whether the master is there: less than the next one takes to start.
_PARENT_SECONDS = 0.1
#: Seconds that a process without a master has for the work that it has begun.
_ORPHAN_SECONDS = 3.0
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
#: Of UUIDs with commas between them: one look at all takes a fifth of the time of one at each.
_UUIDS = re.compile(f"{_UUID}(?:,{_UUID})*+")


class Runtime(Middleware):
    """Actors and sweeper over one engine and one broker; starts and stops with the process."""

    def __init__(self, settings: Settings, engine: Engine, broker: dramatiq.Broker) -> None:
        """Build the parts; nothing connects and no thread starts yet."""
        self._engine = engine
        self._broker = broker
        self._processor = Processor(
            engine,
            enrichers=installed_enrichers(),
            max_attempts=settings.max_attempts,
            lease_seconds=settings.lease_seconds,
        )
        self.dispatcher = Dispatcher(broker, chunk_rows=settings.chunk_rows)
        self.housekeeper = Housekeeper(settings, engine)
        self.sweeper = Sweeper(settings, engine, self.dispatcher, self._processor, self.housekeeper)
        self._has_ended = threading.Event()
        self._worker: dramatiq.Worker | None = None

    def install(self) -> None:
        """Declare the actors on the broker, and have it start and stop the sweeper."""
        for name, queue, function in (
            (PROCESS_ACTOR, QUEUE, self._process_events),
            (RECOVER_ACTOR, RECOVERY_QUEUE, self._recover_events),
        ):
            dramatiq.actor(broker=self._broker, actor_name=name, queue_name=queue)(function)
        self._broker.add_middleware(self)

    def after_process_boot(self, broker: dramatiq.Broker) -> None:
        """Start what a worker process runs beside its actors."""
        keep_together()
        # What is loaded now stays, and the rows of a message are no garbage before its end.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GARBAGE)
        # None where server and worker are one process, which has no master.
        if master := multiprocessing.parent_process():
            watch = threading.Thread(
                target=self._watch, args=[master.pid], name="parent-watch", daemon=True
            )
            watch.start()
            _end_once()
        self.sweeper.start()
        log.info("worker_started")

    def after_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        """Note whose threads work here."""
        self._worker = worker

    def before_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        """Stop sweeping before the actors stop."""
        self.sweeper.stop()

    def after_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        """Close the connections."""
        self._engine.dispose()
        self._has_ended.set()

    def _process_events(self, keys: object) -> None:
        """Actor: the first delivery of committed events."""
        with self._until_swept():
            self._processor.first_delivery(parse_keys(keys))

    def _recover_events(self, keys: object, attempts: object) -> None:
        """Actor: another attempt at events that the sweeper found."""
        with self._until_swept():
            if type(attempts) is not int or not 0 <= attempts <= _MOST_ATTEMPTS:
                raise ValueError(f"attempts must be 0 to {_MOST_ATTEMPTS}")
            self._processor.recover(parse_keys(keys), attempts=attempts)

    @contextlib.contextmanager
    def _until_swept(self) -> Iterator[None]:
        """Drop a message that cannot be worked on; its rows are PENDING and will be swept."""
        try:
            yield
        except TransientStorageError as error:
            log.warning("message_dropped", reason="storage", error=str(error))
        except ValueError as error:
            log.warning("message_dropped", reason=str(error))

    def _watch(self, master: int) -> None:
        """End this process when its master is gone: `kill -9` of it leaves orphans."""
        while os.getppid() == master:
            time.sleep(_PARENT_SECONDS)  # nothing portable tells it
        log.warning("orphaned")
        # Not by SIGTERM: Dramatiq looks for it once a second, and by then the next generation is at
        # work; or never, if the master was killed while it listened for the start.
        if self._worker:
            threading.Thread(target=self._worker.stop, name="last-stop", daemon=True).start()
            self._has_ended.wait(_ORPHAN_SECONDS)
        os._exit(1)


def _end_once() -> None:
    """Take a second SIGTERM for the first: sent to the whole group, it comes from the master too.

    Dramatiq takes it for impatience and ends at once.
    """
    begin = signal.getsignal(signal.SIGTERM)

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        if callable(begin):
            begin(number, frame)

    signal.signal(signal.SIGTERM, end)


def parse_keys(keys: object) -> list[EventKey]:
    """Return the keys of a message, `{user_id: [event_id, ...]}`.

    Whoever can write to the broker can send anything; raises ValueError for what is not of this
    form. What the keys name is checked against the rows.
    """
    if not isinstance(keys, dict):
        raise ValueError("keys must be an object")
    parsed: list[EventKey] = []
    for user_id, ids in keys.items():
        if not isinstance(ids, list) or len(parsed) + len(ids) > _MOST_KEYS:
            raise ValueError("keys must hold lists of at most 10,000 ids")
        if ids and not _are_uuids([user_id, *ids]):
            raise ValueError("keys must be UUIDs")
        parsed += [EventKey(user_id, event_id) for event_id in ids]
    return parsed


def _are_uuids(values: list[object]) -> bool:
    """Whether all are UUIDs: texts, which joined are as many UUIDs as there are values."""
    try:
        joined = ",".join(values)  # type: ignore[arg-type]  # what is no text raises
    except TypeError:
        return False
    return _UUIDS.fullmatch(joined) is not None and joined.count(",") == len(values) - 1
