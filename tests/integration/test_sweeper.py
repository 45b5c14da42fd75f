"""The sweeper: with a broker, without one, and when workers are behind."""

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Never

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from sqlalchemy import Engine, text

from eventstore.errors import TransientStorageError
from eventstore.processing import _SWEEP_LOCK
from eventstore.settings import Settings
from eventstore.values import EventKey
from tests.kit.rows import add, make_due, row_of, rows_of
from tests.kit.server import closing_engine
from tests.kit.waiting import eventually
from worker.broker import QUEUE, RECOVERY_QUEUE, build_broker
from worker.dispatch import Dispatcher
from worker.housekeeper import Housekeeper
from worker.processor import Processor
from worker.sweeper import Sweeper

Build = Callable[[dramatiq.Broker], Sweeper]


def built(store: Engine, broker: dramatiq.Broker) -> Sweeper:
    settings = Settings.load()
    processor = Processor(store, enrichers=(), max_attempts=5, lease_seconds=15)
    dispatcher = Dispatcher(broker, chunk_rows=2)
    return Sweeper(settings, store, dispatcher, processor, Housekeeper(settings, store))


@pytest.fixture
def build(store: Engine) -> Build:
    """Build a sweeper over a broker."""
    return partial(built, store)


def waiting(broker: dramatiq.Broker, queue: str) -> int:
    assert isinstance(broker, StubBroker)
    return int(broker.queues[queue].qsize())


def test_what_is_due_is_sent_again_in_chunks(store: Engine, build: Build) -> None:
    broker = build_broker("stub://")
    keys = add(store, *[{}] * 5, due_in=-1)

    assert build(broker).sweep() == 5
    assert waiting(broker, RECOVERY_QUEUE) == 3
    assert waiting(broker, QUEUE) == 0
    assert {row.status for row in rows_of(store, keys)} == {1}


def test_without_a_broker_the_sweeper_processes_by_itself(store: Engine, build: Build) -> None:
    keys = add(store, {}, [], {}, due_in=-1)

    assert build(build_broker("redis://127.0.0.1:1/0")).sweep() == 3

    rows = rows_of(store, keys)
    assert [row.status for row in rows] == [2, 3, 2]
    assert [row.attempts for row in rows] == [1, 1, 1]


def test_what_the_broker_does_not_take_the_sweeper_processes_by_itself(
    store: Engine, build: Build
) -> None:
    """It tells how many messages wait, and is away, or full, when there shall be more."""

    class TakesNothing(StubBroker):
        def enqueue(self, message: object, *, delay: int | None = None) -> Never:
            raise ConnectionError

    keys = add(store, {}, [], due_in=-1)

    assert build(TakesNothing(middleware=[])).sweep() == 2
    assert [row.status for row in rows_of(store, keys)] == [2, 3]


def test_recoveries_that_nobody_finishes_do_not_hold_up_the_rows(
    store: Engine, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.sweeper._STUCK_AFTER", 0.2)
    broker = build_broker("stub://")
    sweeper = build(broker)
    keys = add(store, {}, {}, due_in=-1)
    assert sweeper.sweep() == 2
    assert {row.status for row in rows_of(store, keys)} == {1}

    def swept() -> bool:
        make_due(store, keys)
        sweeper.sweep()
        return {row.status for row in rows_of(store, keys)} == {2}

    eventually(swept, timeout=5)
    assert waiting(broker, RECOVERY_QUEUE) > 0


def test_what_was_sent_again_is_due_again_within_seconds(store: Engine, build: Build) -> None:
    """The message may be lost too."""
    keys = add(store, {}, due_in=-1)
    assert build(build_broker("stub://")).sweep() == 1

    left = row_of(store, keys[0]).next_attempt_at - datetime.now(UTC)
    assert timedelta(seconds=3) < left <= timedelta(seconds=5.5)


def test_a_sweep_that_meets_a_bug_is_not_the_last(
    store: Engine, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INGEST_SWEEP_SECONDS", "0.05")
    recover, met = Processor.recover, threading.Event()

    def with_a_bug(self: Processor, keys: Sequence[EventKey], *, attempts: int) -> None:
        if not met.is_set():
            met.set()
            raise RuntimeError
        recover(self, keys, attempts=attempts)

    monkeypatch.setattr(Processor, "recover", with_a_bug)
    keys = add(store, {}, due_in=-1)
    sweeper = build(build_broker("redis://127.0.0.1:1/0"))
    sweeper.start()
    try:
        assert met.wait(5)
        make_due(store, keys)
        eventually(lambda: row_of(store, keys[0]).status == 2, timeout=5)
    finally:
        sweeper.stop()


def test_while_the_queue_is_deep_first_deliveries_are_left_alone(
    store: Engine, build: Build
) -> None:
    """The workers are behind, and the messages are there: sending more would not help."""
    broker = build_broker("stub://")
    sweeper = build(broker)
    dispatcher = Dispatcher(broker, chunk_rows=1)
    keys = add(store, {}, {})
    for _ in range(200):
        dispatcher.first_deliveries({keys[0].user_id: [keys[0].id]})
    make_due(store, keys)

    assert sweeper.sweep() == 0
    assert waiting(broker, RECOVERY_QUEUE) == 0
    broker.flush(QUEUE)
    assert sweeper.sweep() == 2


def test_no_more_recoveries_are_sent_than_the_workers_take(store: Engine, build: Build) -> None:
    broker = build_broker("stub://")
    sweeper = build(broker)
    keys = add(store, *[{}] * 100, due_in=-1)
    assert sweeper.sweep() == 100
    make_due(store, keys)

    assert sweeper.sweep() == 0
    assert waiting(broker, RECOVERY_QUEUE) == 50


def test_only_one_sweeper_sweeps_at_a_time(store: Engine, build: Build) -> None:
    """In SQLite every transaction that writes does; PostgreSQL has a lock for it."""
    add(store, {}, due_in=-1)
    if store.dialect.name == "postgresql":
        with store.begin() as other:
            other.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SWEEP_LOCK})
            assert build(build_broker("stub://")).sweep() == 0
    assert build(build_broker("stub://")).sweep() == 1


def test_nothing_due_is_nothing_to_do(store: Engine, build: Build) -> None:
    add(store, {}, due_in=60)

    assert build(build_broker("stub://")).sweep() == 0


def test_keeping_house_on_a_fresh_database_changes_nothing(store: Engine) -> None:
    keys = add(store, {})

    assert not Housekeeper(Settings.load(), store).keep()

    assert len(rows_of(store, keys)) == 1


def test_sweeps_go_on_while_partitions_cannot_be_made_and_submits_are_not_held_up(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader, say a dump, holds the table for as long as it likes; each round fails quickly."""
    monkeypatch.setenv("INGEST_SWEEP_SECONDS", "0.05")
    with closing_engine(database_url) as postgres:
        with postgres.begin() as connection:
            last = connection.execute(
                text(
                    "SELECT max(inhrelid::regclass::text) FROM pg_inherits WHERE inhparent ="
                    " 'events'::regclass AND inhrelid <> 'events_default'::regclass"
                )
            )
            connection.execute(text(f"DROP TABLE {last.scalar_one()}"))
        keys = add(postgres, {}, due_in=-1)
        with postgres.begin() as reader:
            reader.execute(text("SELECT count(*) FROM events"))
            with pytest.raises(TransientStorageError, match="55P03"):
                Housekeeper(Settings.load(), postgres).keep()
            sweeper = built(postgres, build_broker("redis://127.0.0.1:1/0"))
            sweeper.start()
            try:
                slowest = 0.0
                for _ in range(20):
                    began = time.monotonic()
                    keys += add(postgres, {}, due_in=-1)
                    slowest = max(slowest, time.monotonic() - began)
                eventually(
                    lambda: {row.status for row in rows_of(postgres, keys)} == {2}, timeout=10
                )
            finally:
                sweeper.stop()
        assert slowest < 1

        assert not Housekeeper(Settings.load(), postgres).keep()
