"""The sweeper: with a broker, without one, and when workers are behind."""

from collections.abc import Callable

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from sqlalchemy import Engine, text

from eventstore.processing import _SWEEP_LOCK
from eventstore.settings import Settings
from tests.kit.rows import add, make_due, rows_of
from worker.broker import QUEUE, RECOVERY_QUEUE, build_broker
from worker.dispatch import Dispatcher
from worker.processor import Processor
from worker.sweeper import Sweeper

Build = Callable[[dramatiq.Broker], Sweeper]


@pytest.fixture
def build(store: Engine) -> Build:
    """Build a sweeper over a broker."""

    def build(broker: dramatiq.Broker) -> Sweeper:
        processor = Processor(store, enrichers=(), max_attempts=5, lease_seconds=15)
        return Sweeper(Settings.load(), store, Dispatcher(broker, chunk_rows=2), processor)

    return build


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


def test_keeping_house_on_a_fresh_database_changes_nothing(store: Engine, build: Build) -> None:
    keys = add(store, {})

    build(build_broker("stub://")).keep_house()

    assert len(rows_of(store, keys)) == 1
