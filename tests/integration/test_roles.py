"""Servers and workers run as a role that may do what they do, and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ProgrammingError

from eventstore import processing, retention
from eventstore.clock import DatabaseClock
from eventstore.engine import build_engine

GRANTS = Path(__file__).parents[2] / "deploy" / "roles.sql"


@pytest.fixture
def as_application(database_url: str) -> Iterator[Engine]:
    """The database of this test, as the role of `deploy/roles.sql`."""
    owner = psycopg2.connect(database_url)
    owner.autocommit = True
    with owner.cursor() as cursor:
        cursor.execute("SELECT FROM pg_roles WHERE rolname = 'ingest_app'")
        if cursor.fetchone() is None:
            cursor.execute("CREATE ROLE ingest_app LOGIN")
        cursor.execute(GRANTS.read_text())
    owner.close()
    url = make_url(database_url).set(username="ingest_app", password=None)
    engine = build_engine(url.render_as_string(hide_password=False), name="test", pool_size=2)
    yield engine
    engine.dispose()


def test_the_role_can_keep_partitions_and_retention(as_application: Engine) -> None:
    with as_application.begin() as connection:
        assert retention.ensure_partitions(connection, days_ahead=9) == 2
        now = DatabaseClock().now()
        assert retention.drop_old_events(connection, now=now, days=300) == 0
        assert retention.forget_old_keys(connection, now=now, days=300) == 0


def test_the_role_can_sweep(as_application: Engine) -> None:
    with as_application.begin() as connection:
        assert processing.try_sweep_lock(connection)
        assert not processing.take_due(connection, limit=10, again_after=1, max_attempts=5)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE stolen (a int)",
        "DROP TABLE events",
        "TRUNCATE events",
        "DELETE FROM events",
        "ALTER TABLE events ADD COLUMN a int",
        "DELETE FROM users",
        "UPDATE idempotency_keys SET fingerprint = ''",
        "UPDATE alembic_version SET version_num = 'x'",
    ],
)
def test_the_role_can_do_nothing_else(as_application: Engine, statement: str) -> None:
    with (
        pytest.raises(ProgrammingError, match="InsufficientPrivilege"),
        as_application.begin() as connection,
    ):
        connection.execute(text(statement))
