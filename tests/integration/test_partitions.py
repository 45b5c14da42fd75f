"""Daily partitions and retention: made ahead, filled from the default, dropped when final."""

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, delete, event, func, select, text, update

from eventstore import migrations, retention
from eventstore.bulk import bulk
from eventstore.schema import events, idempotency_keys
from eventstore.settings import Settings
from eventstore.values import EventKey, EventStatus, Finished
from tests.kit.days import day, now
from tests.kit.rows import ALICE, add, new_user, rows_of
from tests.kit.server import closing_engine
from tests.kit.waiting import eventually
from worker.housekeeper import Housekeeper

pytestmark = pytest.mark.usefixtures("one_day")


def partitions(connection: Connection) -> set[str]:
    """The days that have a partition, such as 20260131."""
    names = connection.execute(
        text(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
            " WHERE i.inhparent = 'events'::regclass"
        )
    ).scalars()
    return {name.removeprefix("events_") for name in names} - {"default"}


@pytest.fixture
def postgres(database_url: str) -> Iterator[Engine]:
    with closing_engine(database_url) as engine:
        yield engine


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Engine]:
    url = f"sqlite:///{tmp_path / 'ingest.db'}"
    migrations.upgrade(url)
    with closing_engine(url) as engine:
        yield engine


def test_a_new_database_has_partitions_from_yesterday_to_a_week_ahead(postgres: Engine) -> None:
    with postgres.connect() as connection:
        assert partitions(connection) == {day(offset) for offset in range(-1, 8)}


def test_every_partition_keeps_room_on_its_pages(postgres: Engine) -> None:
    with postgres.begin() as connection:
        retention.ensure_partitions(connection, days_ahead=9)
        options = connection.execute(
            text(
                "SELECT DISTINCT c.reloptions FROM pg_inherits i JOIN pg_class c"
                " ON c.oid = i.inhrelid WHERE i.inhparent = 'events'::regclass"
            )
        ).scalars()
        assert list(options) == [["fillfactor=90"]]


def test_missing_days_are_created_ahead_and_only_those(postgres: Engine) -> None:
    with postgres.begin() as connection:
        assert retention.ensure_partitions(connection, days_ahead=10) == 3
        assert retention.ensure_partitions(connection, days_ahead=10) == 0
        assert day(10) in partitions(connection)


def test_an_event_lands_in_the_partition_of_its_day(postgres: Engine) -> None:
    keys = add(postgres, {}) + add(postgres, {}, received_at=now() + timedelta(days=3))
    with postgres.connect() as connection:
        where = connection.execute(
            select(text("tableoid::regclass::text")).select_from(events).order_by(events.c.id)
        ).scalars()

        assert list(where) == [f"events_{day(0)}", f"events_{day(3)}"]
    assert keys == sorted(keys)


def test_rows_in_the_default_partition_move_when_their_day_gets_one(postgres: Engine) -> None:
    """Nothing is refused when partitions were not made in time, and nothing is lost later."""
    with postgres.begin() as connection:
        connection.execute(text(f"DROP TABLE events_{day(5)}"))
    keys = add(postgres, {"n": 1}, {"n": 2}, received_at=now() + timedelta(days=5))
    (elsewhere,) = add(postgres, {"n": 3}, received_at=now() + timedelta(days=40))
    before = rows_of(postgres, keys)
    with postgres.begin() as connection:
        default = text("SELECT count(*) FROM events_default")
        assert connection.execute(default).scalar_one() == 3
        assert retention.ensure_partitions(connection, days_ahead=7) == 1
        assert connection.execute(default).scalar_one() == 1
        moved = connection.execute(
            select(func.count()).select_from(text(f"events_{day(5)}"))
        ).scalar_one()

    assert moved == 2
    assert rows_of(postgres, keys) == before
    assert rows_of(postgres, [elsewhere])


def test_days_without_rows_in_the_default_partition_come_first_and_each_stands_alone(
    postgres: Engine,
) -> None:
    """However many the rows are, and however long they take to move, tomorrow has a partition."""
    with postgres.begin() as connection:
        for offset in (-1, 0, 1, 2):
            connection.execute(text(f"DROP TABLE events_{day(offset)}"))
    longer_ago = add(postgres, {}, received_at=now() - timedelta(days=3))
    keys = longer_ago + add(postgres, {}, {}) + add(postgres, {}, received_at=tomorrow())
    before = rows_of(postgres, keys)
    made: list[set[str]] = []
    while not made or made[-1]:
        with postgres.begin() as connection:
            known = partitions(connection)
            retention.ensure_partitions(connection, days_ahead=7)
            made.append(partitions(connection) - known)

    assert made == [{day(offset)} for offset in (-1, 2, -3, 0, 1)] + [set()]
    assert rows_of(postgres, keys) == before
    with postgres.connect() as connection:
        assert not connection.execute(text("SELECT count(*) FROM events_default")).scalar_one()


def tomorrow() -> datetime:
    return now() + timedelta(days=1)


def test_rows_take_the_time_that_they_need_to_move(postgres: Engine) -> None:
    """More than the five seconds that a statement has otherwise."""
    with postgres.begin() as connection:
        connection.execute(text(f"DROP TABLE events_{day(5)}"))
        connection.execute(
            text(
                "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN PERFORM pg_sleep(7); RETURN OLD; END $$;"
                " CREATE TRIGGER slow BEFORE DELETE ON events_default"
                " FOR EACH ROW EXECUTE FUNCTION slow()"
            )
        )
    (key,) = add(postgres, {}, received_at=now() + timedelta(days=5))
    while Housekeeper(Settings.load(), postgres).keep():
        pass

    with postgres.connect() as connection:
        assert day(5) in partitions(connection)
    assert rows_of(postgres, [key])


def test_a_pending_event_that_is_committed_while_its_partition_is_dropped_keeps_it(
    postgres: Engine,
) -> None:
    with postgres.begin() as connection:
        old_partition(connection, 31)
    kept = add(postgres, {})
    with ThreadPoolExecutor(1) as pool, postgres.connect() as late, postgres.connect() as watch:
        late.execute(
            text(
                "INSERT INTO events (user_id, id, received_at, occurred_at, next_attempt_at, type,"
                " source, subject, payload)"
                " SELECT user_id, ingest_first_id_of(:day), received_at, occurred_at,"
                " next_attempt_at, type, source, subject, payload FROM events"
            ),
            {"day": now().date() - timedelta(days=31)},
        )
        with postgres.begin() as house:
            # It would give up after 0.2 s; here it is to wait until the insert is committed.
            dropping = pool.submit(_drop_patiently, house)
            waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            eventually(lambda: dropping.done() or watch.execute(waiting).scalar_one())
            late.commit()
            assert dropping.result(10) == 0
    with postgres.connect() as connection:
        assert connection.execute(select(func.count()).select_from(events)).scalar_one() == 2
    assert rows_of(postgres, kept)


def _drop_patiently(connection: Connection) -> int:
    connection.execute(text("SET LOCAL lock_timeout = 10000"))
    return int(connection.execute(text("SELECT ingest_drop_partitions(30)")).scalar_one())


@pytest.mark.parametrize("days", [-1, 367])
def test_a_number_of_days_that_makes_no_sense_is_refused(postgres: Engine, days: int) -> None:
    with pytest.raises(Exception, match="days_ahead"), postgres.begin() as connection:
        retention.ensure_partitions(connection, days_ahead=days)


def old_partition(connection: Connection, days: int) -> None:
    """Make the partition of a day in the past."""
    moment = now().date() - timedelta(days=days)
    connection.execute(
        text(
            f"CREATE TABLE events_{moment:%Y%m%d} PARTITION OF events FOR VALUES"
            f" FROM (ingest_first_id_of('{moment}')) TO (ingest_first_id_of('{moment}'::date + 1))"
        )
    )


def test_old_partitions_are_dropped_and_those_with_pending_events_stay(postgres: Engine) -> None:
    with postgres.begin() as connection:
        for days in (30, 31, 32):
            old_partition(connection, days)
    final = add(postgres, {}, {}, received_at=now() - timedelta(days=31))
    pending = add(postgres, {}, {}, received_at=now() - timedelta(days=32))
    with postgres.begin() as connection:
        ids = [key.id for key in (*final, pending[0])]
        connection.execute(
            update(events).where(events.c.id.in_(ids)).values(status=EventStatus.PROCESSED)
        )

        assert retention.drop_old_events(connection, days=30) == 1
        left = partitions(connection)

    assert day(-31) not in left
    assert {day(-30), day(-32)} <= left
    assert len(rows_of(postgres, pending)) == 2
    with postgres.begin() as connection:
        connection.execute(update(events).values(status=EventStatus.FAILED))
        assert retention.drop_old_events(connection, days=30) == 1


def test_days_kept_must_be_at_least_one(postgres: Engine) -> None:
    with pytest.raises(Exception, match="days_kept"), postgres.begin() as connection:
        retention.drop_old_events(connection, days=0)


def make(connection: Connection) -> int:
    return retention.ensure_partitions(connection, days_ahead=10)


def drop(connection: Connection) -> int:
    return retention.drop_old_events(connection, days=30)


@pytest.mark.parametrize("keep", [make, drop])
def test_two_workers_that_keep_house_at_once_get_along(
    postgres: Engine, keep: Callable[[Connection], int]
) -> None:
    """The second comes while the first has not committed: it leaves the work to that one."""
    with postgres.begin() as connection:
        old_partition(connection, 31)

    def second() -> int:
        with postgres.begin() as connection:
            return keep(connection)

    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with ThreadPoolExecutor(1) as pool, postgres.connect() as watch, postgres.connect() as first:
        done = keep(first)
        other = pool.submit(second)
        eventually(lambda: other.done() or watch.execute(waiting).scalar_one())
        first.commit()

        assert (done, other.result()) == (3 if keep is make else 1, 0)
    with postgres.begin() as connection:
        assert keep(connection) == 0
        assert (day(10) in partitions(connection)) == (keep is make)


def keep_house(store: Engine) -> bool:
    return Housekeeper(Settings.load(retention_days=30), store).keep()


def test_sqlite_deletes_old_final_events_only(sqlite: Engine) -> None:
    old = add(sqlite, {}, {}, received_at=now() - timedelta(days=31))
    just_old = add(sqlite, {}, user=new_user(), received_at=now() - timedelta(days=30, seconds=9))
    young = add(sqlite, {}, received_at=now() - timedelta(days=30) + timedelta(seconds=9))
    finish(sqlite, [old[0], *just_old, *young])

    assert keep_house(sqlite) is False
    assert left_in(sqlite) == sorted([old[1].id, young[0].id])


def test_sqlite_deletes_all_old_events_part_by_part(sqlite: Engine) -> None:
    keys = add(sqlite, *[{}] * 25_000, received_at=now() - timedelta(days=31))
    (young,) = add(sqlite, {})
    finish(sqlite, [*keys, young])
    while keep_house(sqlite):
        pass

    assert left_in(sqlite) == [young.id]


def test_where_nothing_is_old_housekeeping_does_without_sqlites_write_lock(sqlite: Engine) -> None:
    """Whoever submits need not wait for a look at all that there is."""
    finish(sqlite, add(sqlite, {}, {}))
    with closing(sqlite3.connect(str(sqlite.url.database))) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        assert keep_house(sqlite) is False

        assert time.monotonic() - began < 2  # the busy timeout is five
        other.execute("UPDATE users SET email = 'still@example.org'")
        other.commit()


def test_an_old_event_that_is_redriven_before_sqlite_deletes_it_stays(sqlite: Engine) -> None:
    """Between the look, which keeps nobody from writing, and the lock for deleting."""
    redriven, old = add(sqlite, {}, {}, received_at=now() - timedelta(days=31))
    finish(sqlite, [redriven, old])

    def redrive(_connection: Connection) -> None:
        with closing(sqlite3.connect(str(sqlite.url.database))) as other:
            other.execute(
                "UPDATE events SET status = 1 WHERE id = ?", [redriven.id.replace("-", "")]
            )
            other.commit()

    event.listen(sqlite, "rollback", redrive, once=True)  # the end of the look
    keep_house(sqlite)

    assert left_in(sqlite) == [redriven.id]


def finish(store: Engine, keys: Sequence[EventKey]) -> None:
    with store.begin() as connection:
        bulk(connection).finish(
            connection, [Finished(key, EventStatus.PROCESSED, "{}", None) for key in keys], None
        )


def left_in(store: Engine) -> list[str]:
    with store.connect() as connection:
        return sorted(connection.execute(select(events.c.id)).scalars())


def test_old_keys_are_forgotten_on_both_databases(store: Engine) -> None:
    rows = [
        {
            "user_id": ALICE.id,
            "key": f'k{days} "ü" \n',
            "event_id": ALICE.id,
            "fingerprint": b"x",
            "received_at": now() - timedelta(days=days),
        }
        for days in (1, 29, 31, 400)
    ]
    with store.begin() as connection:
        connection.execute(delete(idempotency_keys))
        connection.execute(idempotency_keys.insert(), rows)

    assert keep_house(store) is False
    with store.connect() as connection:
        left = connection.execute(select(idempotency_keys.c.key)).scalars().all()
    assert sorted(left) == ['k1 "ü" \n', 'k29 "ü" \n']


def test_of_many_keys_all_old_ones_are_forgotten_part_by_part(postgres: Engine) -> None:
    """Old and young ones lie side by side, on more pages than one transaction looks through."""
    with postgres.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO idempotency_keys SELECT CAST(:user AS uuid), 'key ' || n,"
                " gen_random_uuid(), sha256('x'), now() - make_interval(days => n % 60)"
                " FROM generate_series(1, 120000) n"
            ),
            {"user": ALICE.id},
        )
    page, forgotten, parts = 0, 0, 0
    while not parts or page:
        with postgres.begin() as connection:
            count, page = retention.forget_old_keys(connection, days=30, page=page)
        forgotten, parts = forgotten + count, parts + 1
    with postgres.connect() as connection:
        left = connection.execute(select(func.count()).select_from(idempotency_keys)).scalar_one()

    assert parts > 1
    # Those of thirty days exactly are as old as they may be, and a moment older.
    assert (forgotten, left) == (60_000, 60_000)
