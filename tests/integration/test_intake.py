"""The intake with its two writers, straight against PostgreSQL."""

import asyncio
import gc
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path

import psycopg2
import pytest

from eventstore import migrations
from eventstore.accept import Verdicts
from eventstore.clock import DatabaseClock
from eventstore.engine import build_engine
from eventstore.errors import TransientStorageError
from eventstore.settings import Settings
from eventstore.values import KeysByUser, NewEvent, NotStorable, Submission, User
from ingest_service.errors import StorageUnavailable
from ingest_service.ids import EventIds
from ingest_service.intake import Intake
from ingest_service.writer import Writer

USER = User(id="455b8390-491e-526d-b01a-c5f903b198f7", issuer="i", subject="s", email="")
IDS = EventIds()


def submission(events: int, *, keyed: bool = False) -> Submission:
    now = datetime.now(UTC)
    rows = [
        NewEvent(
            USER.id, event_id, "a", "", "", event_id if keyed else "", b"x" * 32 if keyed else b"",
            now, now, "", "null",
        )
        for event_id in IDS.take(int(now.timestamp() * 1000), events)
    ]  # fmt: skip
    return Submission(user=USER, events=rows, atomic=False, size=100 * events)


@asynccontextmanager
async def intake(
    url: str, dispatch: Callable[[KeysByUser], None] = lambda _keys: None
) -> AsyncIterator[Intake]:
    engine = build_engine(url, name="test-intake", pool_size=2, keyed=True)
    clock = DatabaseClock()
    writers = [Writer(engine, clock, grace_seconds=60) for _ in range(2)]
    started = Intake(writers, Settings(), dispatch)
    started.start()
    try:
        yield started
    finally:
        async with asyncio.timeout(20):
            await started.drain()
        engine.dispose()


def cut_all(url: str) -> int:
    """End the writers' sessions, as a restart or a firewall does; returns how many there were."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE application_name = 'test-intake' AND datname = current_database()"
        )
        return int(cursor.fetchall()[0][0])


def test_a_burst_after_the_sessions_were_cut_is_stored_by_both_writers(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In production a connection that rested for ten seconds is tested before it is used.
    monkeypatch.setattr("ingest_service.writer._REST_SECONDS", 0.0)

    async def bursts() -> None:
        async with intake(database_url) as started:
            await asyncio.gather(*(started.submit(submission(100)) for _ in range(40)))
            assert cut_all(database_url) == 2
            await asyncio.gather(*(started.submit(submission(100)) for _ in range(40)))

    asyncio.run(bursts())
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM events")
        assert cursor.fetchall() == [(8_000,)]


def test_an_intake_ends_whenever_it_is_told_to(database_url: str) -> None:
    """The second writer may have been called a moment before the end, with nothing left to do."""

    async def once() -> None:
        async with intake(database_url) as started:
            await asyncio.gather(*(started.submit(submission(300)) for _ in range(4)))
            started._deep.set()

    for _ in range(30):
        asyncio.run(once())


def test_a_connection_gathers_nothing_however_often_its_way_of_committing_changes(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One event with a key commits itself, two of them need a transaction, the clock none."""
    monkeypatch.setattr("eventstore.clock._SYNC_SECONDS", 0.0)
    engine = build_engine(store_url, name="test-intake", pool_size=1, keyed=True)
    writer = Writer(engine, DatabaseClock(), grace_seconds=60)

    def write(times: int) -> int:
        for _ in range(times):
            for events in (1, 2):
                assert writer.write([submission(events, keyed=True)])[0] == [{}]
        gc.collect()
        return len(gc.get_objects())

    before = write(100)
    assert write(500) - before < 500
    writer.disconnect()
    engine.dispose()


def test_the_time_of_sqlite_is_told_while_somebody_else_writes(tmp_path: Path) -> None:
    """Or a submit waits for the lock once to know the time, and then again to write."""
    path = tmp_path / "ingest.db"
    migrations.upgrade(f"sqlite:///{path}")
    engine = build_engine(f"sqlite:///{path}", name="test-intake", pool_size=2)
    clock = DatabaseClock()
    writer = Writer(engine, clock, grace_seconds=60)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writer.connect()
        assert clock.synchronised
        clock.doubt()
        with pytest.raises(TransientStorageError):
            writer.write([submission(1)])
        assert not clock.stale
        other.execute("ROLLBACK")
        assert writer.write([submission(1)])[0] == [{}]
    writer.disconnect()
    engine.dispose()


def test_what_is_written_after_a_connection_was_given_up_is_committed(database_url: str) -> None:
    """SQLAlchemy connects again by itself, and that session commits nothing by itself."""
    engine = build_engine(database_url, name="test-intake", pool_size=1, keyed=True)
    writer = Writer(engine, DatabaseClock(), grace_seconds=60)
    for _ in range(2):
        assert writer.write([submission(1, keyed=True)])[0] == [{}]
    assert writer._connection is not None
    writer._connection.invalidate()
    assert writer.write([submission(1, keyed=True)])[0] == [{}]
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM events")
        assert cursor.fetchall() == [(3,)]
    writer.disconnect()
    engine.dispose()


def test_a_key_that_somebody_holds_refuses_nobody_else(database_url: str) -> None:
    locked = [submission(1, keyed=True) for _ in range(2)]
    others = [submission(1, keyed=True) for _ in range(20)]

    async def submit(asked: list[Submission]) -> list[object]:
        async with intake(database_url) as started:
            waiting = [started.submit(one) for one in asked]
            return list(await asyncio.gather(*waiting, return_exceptions=True))

    with closing(psycopg2.connect(database_url)) as holder, holder.cursor() as cursor:
        for one in locked:
            cursor.execute(
                "INSERT INTO idempotency_keys VALUES (%s, %s, %s, 'x', now())",
                (USER.id, one.events[0].idempotency_key, one.events[0].id),
            )
        outcomes = asyncio.run(submit([locked[0], *others[:10], locked[1], *others[10:]]))

    refused = [at for at, outcome in enumerate(outcomes) if outcome != {}]
    assert refused == [0, 11]
    assert all(isinstance(outcomes[at], StorageUnavailable) for at in refused)


@pytest.mark.parametrize("character", ["\n", "\t", "\r"])
def test_a_field_that_would_be_another_row_or_more_columns_is_refused_alone(
    database_url: str, character: str
) -> None:
    """The edge lets none through; this is what keeps them from COPY if it ever did."""

    async def forge() -> tuple[Verdicts, int]:
        async with intake(database_url) as started:
            asked = submission(3)
            good, bad, last = asked.events
            # The rest of its row, and the beginning of another.
            (other,) = IDS.take(0, 1)
            times = "\t".join([str(bad.received_at)] * 3)
            source = f"x\t\t\0\t\0\tnull{character}{USER.id}\t{other}\t{times}\ta\tx"
            forged = bad._replace(source=source)
            verdicts = await started.submit(asked._replace(events=[good, forged, last]))
        with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM events WHERE user_id = %s", (USER.id,))
            return verdicts, int(cursor.fetchall()[0][0])

    verdicts, stored = asyncio.run(forge())

    assert {at: type(verdict) for at, verdict in verdicts.items()} == {1: NotStorable}
    assert stored == 2
