"""What PostgreSQL plans for the worker's statements when a partition is new and unknown to it."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, event, text

from eventstore import migrations, processing, reading, retention, sqlite
from eventstore.accept import accept
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


def test_in_sqlite_too_every_row_is_looked_up_by_user_and_name(tmp_path: Path) -> None:
    """For pairs, or for many keys, SQLite would read all rows of the user."""
    url = f"sqlite:///{tmp_path / 'ingest.db'}"
    migrations.upgrade(url)
    found: list[str] = []

    def explain(connection: Connection, cursor: Any, statement: str, values: Any, *_: Any) -> None:
        if not statement.startswith(("EXPLAIN", "BEGIN")):
            one = values[0] if statement.lstrip().startswith("INSERT") else values
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}", one)
            found.extend(row[3] for row in cursor.fetchall())

    with closing_engine(url) as engine:
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
            event.listen(connection, "before_cursor_execute", explain)
            assert (
                len(sqlite.holders(connection, [(r.user_id, r.idempotency_key) for r in rows])) == 3
            )
            assert (
                len(sqlite.lease(connection, keys, attempts=0, token=str(uuid4()), seconds=9)) == 3
            )
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
