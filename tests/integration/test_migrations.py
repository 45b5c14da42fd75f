"""From nothing to the schema, once, whoever starts at the same time."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from eventstore import migrations
from eventstore.inspection import is_current
from eventstore.settings import SettingsError
from tests.kit.server import DATABASES, closing_engine


@pytest.fixture(params=DATABASES)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a database without any table is."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("empty_database_url"))
    return f"sqlite:///{tmp_path / 'empty.db'}"


def test_an_empty_database_is_brought_to_the_current_schema(empty_url: str) -> None:
    assert migrations.pending_changes(empty_url)

    migrations.upgrade(empty_url)

    assert migrations.pending_changes(empty_url) == []


def test_a_second_migration_finds_nothing_to_do(empty_url: str) -> None:
    migrations.upgrade(empty_url)
    migrations.upgrade(empty_url)

    with closing_engine(empty_url) as engine, engine.connect() as connection:
        assert is_current(connection)


def test_what_a_later_version_migrated_is_left_as_it_is(store_url: str) -> None:
    """So that this version can come back."""
    with closing_engine(store_url) as engine:
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        migrations.upgrade(store_url)

        assert migrations.pending_changes(store_url) == []
        with engine.connect() as connection:
            assert is_current(connection)
            kept = connection.execute(text("SELECT version_num FROM alembic_version")).scalars()
            assert kept.all() == ["9999"]


def test_tables_of_another_program_are_left_alone(empty_url: str) -> None:
    """Whose revisions are named by letters, too, and are no later ones of ours."""
    with closing_engine(empty_url) as engine:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE alembic_version (version_num varchar(32))"))
            connection.execute(text("INSERT INTO alembic_version VALUES ('ae1027a6acf4')"))
        for migrate in (migrations.upgrade, migrations.pending_changes):
            with pytest.raises(SettingsError, match="INGEST_DATABASE_URL are another program's"):
                migrate(empty_url)

        with engine.connect() as connection:
            assert not is_current(connection)
            assert inspect(connection).get_table_names() == ["alembic_version"]


def test_options_of_the_url_are_kept(empty_database_url: str) -> None:
    """What we set beside them as well."""
    with closing_engine(empty_database_url) as engine, engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA ingest"))
    url = f"{empty_database_url}?options=-csearch_path%3Dingest%20-csynchronous_commit%3Doff"

    migrations.upgrade(url)

    with closing_engine(url) as engine, engine.connect() as connection:
        where = "SELECT to_regclass('ingest.events')::text, to_regclass('public.events')::text"
        assert tuple(connection.execute(text(where)).one()) == ("events", None)
        assert connection.execute(text("SHOW synchronous_commit")).scalar_one() == "on"


def test_asking_for_the_revision_again_and_again_keeps_nothing(store_url: str) -> None:
    """Health asks every second: what each question left behind was megabytes after minutes."""
    compiled: dict[object, object] = {}
    with closing_engine(store_url) as engine, engine.connect() as connection:
        connection.execution_options(compiled_cache=compiled)
        assert is_current(connection)
        once = len(compiled)
        for _ in range(10):
            assert is_current(connection)

    assert len(compiled) == once


def test_migrators_that_start_together_all_succeed(empty_url: str) -> None:
    failures: list[BaseException] = []
    together = threading.Barrier(4)

    def migrate() -> None:
        try:
            together.wait(10)
            migrations.upgrade(empty_url)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            failures.append(error)

    threads = [threading.Thread(target=migrate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert migrations.pending_changes(empty_url) == []


def test_a_schema_that_was_changed_by_hand_is_noticed(store_url: str) -> None:
    with closing_engine(store_url) as engine, engine.begin() as connection:
        connection.execute(text("ALTER TABLE users ADD COLUMN nickname TEXT"))

    assert any("nickname" in change for change in migrations.pending_changes(store_url))


def test_partitions_that_come_and_go_are_no_change(database_url: str) -> None:
    with closing_engine(database_url) as engine, engine.begin() as connection:
        connection.execute(text("SELECT ingest_ensure_partitions(20)"))

    assert migrations.pending_changes(database_url) == []


def test_payloads_are_compressed_with_lz4_where_the_server_has_it(database_url: str) -> None:
    with closing_engine(database_url) as engine, engine.connect() as connection:
        columns, with_lz4 = connection.execute(
            text(
                "SELECT count(*), count(*) FILTER (WHERE attcompression = 'l')"
                " FROM pg_attribute JOIN pg_class c ON c.oid = attrelid"
                " WHERE attname IN ('payload', 'properties') AND relname LIKE 'events%'"
                " AND c.relkind IN ('r', 'p')"
            )
        ).one()
        offered = connection.execute(
            text(
                "SELECT 'lz4' = ANY (enumvals) FROM pg_settings"
                " WHERE name = 'default_toast_compression'"
            )
        ).scalar_one()

    assert columns > 10
    assert with_lz4 == (columns if offered else 0)
