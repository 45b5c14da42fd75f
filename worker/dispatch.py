"""Sends keys to the broker; the messages are hints, so whatever is lost here the sweeper finds."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import groupby

import dramatiq
import structlog

from eventstore.values import DueEvent, EventKey, KeysByUser
from worker.broker import QUEUE, RECOVERY_QUEUE, waiting_messages

log = structlog.get_logger()

PROCESS_ACTOR = "process_events"
RECOVER_ACTOR = "recover_events"

#: Seconds that nothing is sent after a failure; doubled with each further one.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 5.0
#: Seconds between two rounds of messages, in which the groups of small commits gather.
_LEAST_PAUSE = 0.02
#: Messages in the queue beyond which no more are sent: rows wait as well, and cost Redis nothing.
_MOST_WAITING = 20_000
#: Groups that wait to be sent, beyond which they are left to the sweeper.
_MOST_GROUPS = 2_000


class BrokerUnavailable(Exception):
    """The broker did not take a message, or nobody knows whether it did."""


class Dispatcher:
    """Writes messages for the two actors; safe to call from several threads."""

    def __init__(self, broker: dramatiq.Broker, *, chunk_rows: int) -> None:
        """Take the broker and the most keys of one message."""
        self._broker = broker
        self._chunk_rows = chunk_rows
        broker.declare_queue(QUEUE)
        broker.declare_queue(RECOVERY_QUEUE)

    def first_deliveries(self, keys: KeysByUser) -> None:
        """Send the keys of committed events; raises BrokerUnavailable."""
        for chunk in _chunks(keys, self._chunk_rows):
            self._send(QUEUE, PROCESS_ACTOR, chunk, {})

    def recoveries(self, due: Iterable[DueEvent]) -> None:
        """Send what the sweeper took, by number of attempts; raises BrokerUnavailable."""
        for attempts, keys in by_attempts(due):
            by_user: KeysByUser = {}
            for key in keys:
                by_user.setdefault(key.user_id, []).append(key.id)
            for chunk in _chunks(by_user, self._chunk_rows):
                self._send(RECOVERY_QUEUE, RECOVER_ACTOR, chunk, {"attempts": attempts})

    def waiting(self, queue_name: str) -> int:
        """Return how many messages wait in a queue; raises BrokerUnavailable."""
        try:
            return waiting_messages(self._broker, queue_name)
        except Exception as error:
            raise BrokerUnavailable(type(error).__name__) from error

    def _send(self, queue_name: str, actor: str, keys: KeysByUser, options: dict[str, int]) -> None:
        message: dramatiq.Message[None] = dramatiq.Message(
            queue_name=queue_name,
            actor_name=actor,
            args=(keys,),
            kwargs=options,
            options={},
        )
        try:
            self._broker.enqueue(message)
        except Exception as error:
            # Redis and RabbitMQ clients share no base class, and raise OSError besides.
            raise BrokerUnavailable(type(error).__name__) from error


def _chunks(keys: KeysByUser, rows: int) -> Iterator[KeysByUser]:
    """Split keys into messages of at most `rows` events; most often there is one user."""
    chunk: KeysByUser = {}
    room = rows
    for user_id, ids in keys.items():
        start = 0
        while start < len(ids):
            chunk[user_id] = ids[start : start + room]
            start += room
            room -= len(chunk[user_id])
            if room == 0:
                yield chunk
                chunk, room = {}, rows
    if chunk:
        yield chunk


def by_attempts(due: Iterable[DueEvent]) -> list[tuple[int, list[EventKey]]]:
    """Group what the sweeper took by its number of attempts."""
    ordered = sorted(due, key=lambda event: event.attempts)
    return [
        (attempts, [event.key for event in group])
        for attempts, group in groupby(ordered, key=lambda event: event.attempts)
    ]


class BackgroundDispatcher:
    """Sends first deliveries from a thread of its own, behind a breaker.

    The caller never waits for the broker. While the breaker is open, and while the queue is full,
    keys are dropped here and left to the sweeper.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        """Take the dispatcher; `start` starts the thread."""
        self._dispatcher = dispatcher
        self._groups: queue.SimpleQueue[KeysByUser | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="dispatch", daemon=True)
        self._pause = 0.0
        self._closed_until = 0.0
        self._checked_at = 0.0
        self._sent_at = 0.0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Send what waits and end the thread, within `timeout` seconds."""
        self._groups.put(None)
        self._thread.join(timeout)

    def dispatch(self, keys: KeysByUser) -> None:
        """Have the keys of a committed group sent; returns at once and never raises."""
        if self._groups.qsize() < _MOST_GROUPS:
            self._groups.put(keys)

    def _run(self) -> None:
        while (keys := self._next_keys()) is not None:
            if time.monotonic() < self._closed_until:
                continue
            try:
                self._check_depth()
                self._dispatcher.first_deliveries(keys)
            except BrokerUnavailable as error:
                self._pause = min(_LONGEST_PAUSE, self._pause * 2 or _FIRST_PAUSE)
                self._closed_until = time.monotonic() + self._pause
                log.warning("broker_unavailable", error=str(error), pause_seconds=self._pause)
            else:
                if self._pause:
                    self._pause = 0.0
                    log.info("broker_available")

    def _next_keys(self) -> KeysByUser | None:
        """Wait for a group, and take those that gathered behind it; None at the end.

        Under load fifty rounds a second are plenty: each costs as much as a hundred of
        the events that it names.
        """
        group = self._groups.get()
        if group is None:
            return None
        gather = self._sent_at + _LEAST_PAUSE - time.monotonic()
        if gather > 0:
            time.sleep(gather)
        self._sent_at = time.monotonic()
        keys: KeysByUser = {}
        while group is not None:
            for user_id, ids in group.items():
                keys.setdefault(user_id, []).extend(ids)
            try:
                group = self._groups.get_nowait()
            except queue.Empty:
                return keys
        self._groups.put(None)
        return keys

    def _check_depth(self) -> None:
        now = time.monotonic()
        if now - self._checked_at < 1:
            return
        self._checked_at = now
        waiting = self._dispatcher.waiting(QUEUE)
        if waiting > _MOST_WAITING:
            self._closed_until = now + 1
            log.warning("queue_full", waiting=waiting)
