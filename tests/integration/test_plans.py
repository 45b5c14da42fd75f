"""What PostgreSQL plans for the worker's statements when a partition is new and unknown to it."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, event, text

from eventstore import migrations, processing, reading, retention, sqlite, sqlite_retention
from eventstore.accept import accept
from eventstore.engine import reading as reading_only
from eventstore.postgres import insert_keys
from eventstore.values import (
    Duplicate,
    EventKey,
    EventStatus,
    Finished,
    NewEvent,
    Submission,
)
from tests.kit.days import day, now
from tests.kit.plans import Plans
from tests.kit.rows import add, new_user, offer
from tests.kit.server import closing_engine

pytestmark = pytest.mark.usefixtures("one_day")


@pytest.fixture
def postgres(database_url: str) -> Iterator[Engine]:
    """Forty partitions: some with analysed rows, and today's, of which nothing is known."""
    with closing_engine(database_url) as engine:
        with engine.begin() as connection:
            retention.ensure_partitions(connection, days_ahead=38)
        for offset in (1, 2, 3):
            add(engine, *[{"n": 1}] * 300, received_at=now() + timedelta(days=offset))
        with engine.begin() as connection:
            connection.execute(text("ANALYZE"))
        yield engine


def fill_today(engine: Engine, count: int = 2_000) -> list[EventKey]:
    """Write rows of which the planner has not heard."""
    return add(engine, *[{"page": "/"}] * count)


def results(keys: Sequence[EventKey]) -> list[Finished]:
    return [Finished(key, EventStatus.PROCESSED, "{}", None) for key in keys]


def run(name: str, connection: Connection, keys: Sequence[EventKey]) -> None:
    if name == "waiting":
        assert len(processing.waiting(connection, keys)) == len(keys)
    elif name == "finish":
        assert processing.finish(connection, results(keys)) == len(keys)
    else:
        token = str(uuid4())
        held = processing.lease(connection, keys, attempts=0, token=token, seconds=15)
        assert len(held) == len(keys)


@pytest.mark.parametrize("name", ["waiting", "lease", "finish"])
@pytest.mark.parametrize("count", [1, 500])
def test_rows_are_found_by_their_key_in_the_partitions_of_their_ids(
    postgres: Engine, name: str, count: int
) -> None:
    keys = fill_today(postgres)[700 : 700 + count]
    if name == "lease":
        offer(postgres, keys)
    with postgres.begin() as connection:
        plans = Plans(connection)
        run(name, connection, keys)

    assert plans.found
    assert {relation for relation, _ in plans.scans()} == {f"events_{day()}"}
    assert {kind for _, kind in plans.scans()} == {"Index Scan"}


def test_keys_of_two_days_open_two_partitions(postgres: Engine) -> None:
    tomorrow = now() + timedelta(days=1)
    keys = fill_today(postgres)[:10] + add(postgres, *[{}] * 10, received_at=tomorrow)
    with postgres.begin() as connection:
        plans = Plans(connection)
        run("waiting", connection, keys)

    assert {relation for relation, _ in plans.scans()} == {f"events_{day()}", f"events_{day(1)}"}


def test_a_group_of_many_users_is_found_by_key_too(postgres: Engine) -> None:
    fill_today(postgres)
    keys = [key for _ in range(100) for key in add(postgres, {}, {}, user=new_user())]
    with postgres.begin() as connection:
        plans = Plans(connection)
        run("waiting", connection, keys)

    assert {kind for _, kind in plans.scans()} == {"Index Scan"}
    assert {relation for relation, _ in plans.scans()} == {f"events_{day()}"}


def test_who_holds_a_key_is_looked_up_by_key_however_many_the_user_has(postgres: Engine) -> None:
    """By pairs of user and key, PostgreSQL would read all keys of the user for each submission."""
    user = new_user()
    rows = [
        NewEvent(
            user.id, str(uuid4()), "t", "", "", f"key {number}", b"f" * 32, now(), now(), "", "{}"
        )
        for number in range(5_000)
    ]  # fmt: skip
    with postgres.begin() as connection:
        insert_keys(connection, sorted(rows, key=lambda row: row.idempotency_key))
    again = [row._replace(id=str(uuid4())) for row in rows[1_000:1_100]]
    submission = Submission(user, again, atomic=True, size=1)
    with postgres.begin() as connection:
        plans = Plans(connection)
        (verdicts,), written = accept(connection, [submission], unseen=[], next_attempt=now())

    assert {v.event_id for v in verdicts.values() if isinstance(v, Duplicate)} == {
        row.id for row in rows[1_000:1_100]
    }
    assert not written
    scans = [
        node
        for node in plans.nodes()
        if node.get("Relation Name") == "idempotency_keys" and node["Node Type"] != "ModifyTable"
    ]
    assert [node["Node Type"] for node in scans] == ["Index Scan"]
    assert "user_id" in scans[0]["Index Cond"]
    assert "key = ANY" in scans[0]["Index Cond"]


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Engine]:
    url = f"sqlite:///{tmp_path / 'ingest.db'}"
    migrations.upgrade(url)
    with closing_engine(url) as engine:
        yield engine


def explained(where: Engine | Connection) -> list[str]:
    """Return the list to which SQLite's way to do each statement is added, from now on."""
    found: list[str] = []

    def explain(connection: Connection, cursor: Any, statement: str, values: Any, *_: Any) -> None:
        if not statement.startswith(("EXPLAIN", "BEGIN", "PRAGMA")):
            one = values[0] if statement.lstrip().startswith("INSERT") else values
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}", one)
            found.extend(row[3] for row in cursor.fetchall())

    event.listen(where, "before_cursor_execute", explain)
    return found


def test_in_sqlite_old_events_and_keys_are_looked_for_and_deleted_by_an_index(
    sqlite_store: Engine,
) -> None:
    keys = add(sqlite_store, {}, received_at=now() - timedelta(days=31))
    with sqlite_store.begin() as connection:
        sqlite.finish(connection, results(keys), None)
        sqlite.insert_keys(connection, [old_named_event()])
    found = explained(sqlite_store)

    assert sqlite_retention.drop_old_events(sqlite_store, days=30) == 1
    assert sqlite_retention.forget_old_keys(sqlite_store, days=30) == 1
    assert sorted(line.rpartition(" INDEX ")[2] for line in found if "SEARCH" in line) == [
        "idempotency_keys_received_at (received_at<?)",
        "sqlite_autoindex_events_1 (user_id=? AND id<?)",
        "sqlite_autoindex_events_1 (user_id=? AND id=?)",
        "sqlite_autoindex_idempotency_keys_1 (user_id=? AND key=?)",
    ]
    assert not [line for line in found if line in {"SCAN events", "SCAN idempotency_keys"}]


def old_named_event() -> NewEvent:
    at = now() - timedelta(days=31)
    return NewEvent(str(uuid4()), str(uuid4()), "t", "", "", "key", b"f", at, at, "", "{}")


def test_in_sqlite_pending_events_of_a_user_with_many_are_counted_by_their_own_index(
    sqlite_store: Engine,
) -> None:
    """They are older than the newest ones, over which all others are counted."""
    keys = add(sqlite_store, *[{}] * (reading.COUNT_ROWS + 5))
    add(sqlite_store, {}, user=new_user())
    with sqlite_store.begin() as connection:
        sqlite.finish(connection, results(keys[5:]), None)
    with reading_only(sqlite_store) as connection:
        found = explained(connection)
        for filters in (
            reading.Filters(),
            reading.Filters(received_after=now() - timedelta(days=1)),
        ):
            counts, truncated = reading.count_events(connection, keys[0].user_id, filters)

            assert (counts[EventStatus.PENDING], truncated) == (5, True)
            assert counts[EventStatus.PROCESSED] == reading.COUNT_ROWS
            assert found[-1] == "SCAN events USING INDEX events_pending"


def test_in_sqlite_too_every_row_is_looked_up_by_user_and_name(sqlite_store: Engine) -> None:
    """For pairs, or for many keys, SQLite would read all rows of the user."""
    engine = sqlite_store
    keys = add(engine, {}, {}, {})
    rows = [
        NewEvent(
            keys[0].user_id, str(uuid4()), "t", "", "", name, b"f", now(), now(), "", "{}"
        )
        for name in ("a", "b", "c")
    ]  # fmt: skip
    with engine.begin() as connection:
        sqlite.insert_keys(connection, rows)
        sqlite.offer(connection, keys, 9)
        found = explained(connection)
        assert len(sqlite.holders(connection, [(r.user_id, r.idempotency_key) for r in rows])) == 3
        assert len(sqlite.lease(connection, keys, attempts=0, token=str(uuid4()), seconds=9)) == 3
        sqlite.offer(connection, keys, 9)
        sqlite.free_keys(connection, rows)

    looked = [line for line in found if line.startswith(("SEARCH", "SCAN"))]
    assert {line.split("(")[1] for line in looked if "users" not in line} == {
        "user_id=? AND key=?)",
        "user_id=? AND id=?)",
    }
    assert not [line for line in looked if line.startswith("SCAN")]


def test_old_keys_are_looked_for_by_pages(postgres: Engine) -> None:
    with postgres.begin() as connection:
        plans = Plans(connection)
        retention.forget_old_keys(connection, days=30)

    kinds = {n["Node Type"] for n in plans.nodes() if n.get("Relation Name") == "idempotency_keys"}
    assert kinds == {"ModifyTable", "Tid Range Scan"}


def test_the_sweep_reads_the_index_of_pending_rows_only(postgres: Engine) -> None:
    keys = fill_today(postgres)
    with postgres.begin() as connection:
        processing.finish(connection, results(keys[:-10]))
    with postgres.begin() as connection:
        plans = Plans(connection)
        processing.take_due(connection, limit=1_000, again_after=15, max_attempts=5)

    indexes = {
        node["Index Name"] for node in plans.nodes() if node["Node Type"].startswith("Index")
    }
    assert not [kind for _, kind in plans.scans() if kind == "Seq Scan"]
    assert all("next_attempt_at" in name for name in indexes), indexes


def test_who_has_many_pending_events_is_counted_by_the_index_of_pending_rows(
    postgres: Engine,
) -> None:
    keys = fill_today(postgres)
    with postgres.begin() as connection:
        processing.finish(connection, results(keys[:-10]))
    with postgres.begin() as connection:
        plans = Plans(connection)
        waiting = reading.users_with_pending(connection, at_least=10)

    indexes = {node["Index Name"] for node in plans.nodes() if "Index Name" in node}
    assert keys[0].user_id in waiting
    assert not [kind for _, kind in plans.scans() if kind == "Seq Scan"]
    assert all("next_attempt_at" in name for name in indexes), indexes
