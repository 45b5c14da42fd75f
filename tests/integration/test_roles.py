"""Servers and workers run as a role that may do what they do, and nothing else."""

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import psycopg2
import pytest
from psycopg2.errors import InsufficientPrivilege
from sqlalchemy import Engine, insert, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ProgrammingError

from eventstore import processing, retention
from eventstore.engine import build_engine
from eventstore.schema import idempotency_keys
from tests.integration.test_doctor import examine
from tests.integration.test_health import health
from tests.integration.test_partitions import old_partition
from tests.integration.test_worker import FAST, start_worker, told
from tests.kit.caller import event, refused
from tests.kit.days import day, now
from tests.kit.processes import Processes
from tests.kit.server import Start, closing_engine, records, settings_for
from tests.kit.waiting import eventually

pytestmark = pytest.mark.usefixtures("one_day")

GRANTS = Path(__file__).parents[2] / "deploy" / "roles.sql"


@pytest.fixture
def application_url(database_url: str) -> str:
    """Where the database of this test is, as the role of `deploy/roles.sql`."""
    owner = psycopg2.connect(database_url)
    owner.autocommit = True
    with owner.cursor() as cursor:
        cursor.execute("SELECT FROM pg_roles WHERE rolname = 'ingest_app'")
        if cursor.fetchone() is None:
            cursor.execute("CREATE ROLE ingest_app LOGIN")
        # What everybody had before PostgreSQL 15, and what a careful owner takes from everybody:
        # the file has to mend both.
        cursor.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
        cursor.execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
        cursor.execute(GRANTS.read_text())
    owner.close()
    url = make_url(database_url).set(username="ingest_app", password=None)
    return url.render_as_string(hide_password=False)


@pytest.fixture
def as_application(application_url: str) -> Iterator[Engine]:
    """An engine of that role."""
    engine = build_engine(application_url, name="test", pool_size=2)
    yield engine
    engine.dispose()


def test_every_call_and_both_processes_work_as_the_role(
    application_url: str, broker_url: str, start_service: Start, processes: Processes
) -> None:
    env = settings_for(application_url, broker_url, **FAST)
    server, worker = start_service(env), start_worker(processes, env)
    assert health(server) == "SERVING"

    alice, keyed = server.caller(), event(idempotency_key="first", payload={"page": "/"})
    first = alice.submit(keyed)
    assert alice.submit(keyed).duplicate
    assert len(alice.batch([event(idempotency_key="second"), event()])) == 2
    # The key that is free is given back: the only deletion of a call.
    taken = event("other", idempotency_key="first")
    refusal = refused(alice.batch, [event(idempotency_key="third"), taken])
    assert refusal.verdict == ("ALREADY_EXISTS", "IDEMPOTENCY_CONFLICT")
    assert alice.stream([[event(idempotency_key="third")], [event()]]).accepted == 2

    eventually(lambda: alice.counts() == {"PROCESSED": 5})
    assert alice.get(first.event_id) == alice.get(idempotency_key="first")
    assert len(alice.list().events) == 5
    assert health(server) == "SERVING"
    for lines in (records(server.process), told(worker)):
        assert {line["level"] for line in lines} == {"info"}


def test_a_worker_of_the_role_keeps_partitions_and_retention(
    database_url: str, application_url: str, broker_url: str, processes: Processes
) -> None:
    with closing_engine(database_url) as owner, owner.begin() as connection:
        connection.execute(text(f"DROP TABLE events_{day(7)}"))
        old_partition(connection, 40)
        connection.execute(
            insert(idempotency_keys).values(
                user_id=str(uuid4()),
                key="old",
                event_id=str(uuid4()),
                fingerprint=b"old",
                received_at=now() - timedelta(days=40),
            )
        )
    # With two of them both may do a part of it.
    more = {"RETENTION_DAYS": "30", "WORKER_PROCESSES": "1"}
    worker = start_worker(processes, settings_for(application_url, broker_url, **FAST | more))

    kept = eventually(lambda: [line for line in told(worker) if line["event"] == "house_kept"])

    assert [kept[0][what] for what in ("partitions", "dropped", "keys_forgotten")] == [1, 1, 1]


def test_doctor_as_the_role_sees_everything_and_finds_no_rights_too_many(
    application_url: str, broker_url: str
) -> None:
    env = settings_for(application_url, broker_url)
    code, found = examine(env, "--allow-unsafe-durability")

    assert (code, found["role"]) == (0, ("ok", "no DDL"))
    assert found["rights"] == ("ok", "enough")
    assert found["default partition"] == ("ok", "empty")


def test_doctor_fails_for_a_role_that_lacks_what_serving_and_working_need(
    database_url: str, application_url: str, broker_url: str
) -> None:
    """Such as one that may only read."""
    with closing(psycopg2.connect(database_url)) as owner, owner.cursor() as cursor:
        cursor.execute(
            "REVOKE INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public FROM ingest_app"
        )
        cursor.execute("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA public FROM ingest_app")
        owner.commit()
    code, found = examine(settings_for(application_url, broker_url), "--allow-unsafe-durability")

    assert (code, found["rights"][0]) == (1, "fail")
    lacks, _, advice = found["rights"][1].removeprefix("lacks ").partition(": ")
    assert set(lacks.split(", ")) == {
        "INSERT on users",
        "UPDATE on users",
        "INSERT on events",
        "UPDATE on events",
        "INSERT on idempotency_keys",
        "DELETE on idempotency_keys",
        "EXECUTE on ingest_ensure_partitions",
        "EXECUTE on ingest_drop_partitions",
    }
    assert "deploy/roles.sql" in advice


def test_doctor_names_the_file_of_grants_that_was_never_run(
    database_url: str, broker_url: str
) -> None:
    with closing(psycopg2.connect(database_url)) as owner, owner.cursor() as cursor:
        cursor.execute("CREATE ROLE ingest_nobody LOGIN")
        owner.commit()
        url = make_url(database_url).set(username="ingest_nobody", password=None)
        env = settings_for(url.render_as_string(hide_password=False), broker_url)
        try:
            code, found = examine(env, "--allow-unsafe-durability")
        finally:
            cursor.execute("DROP ROLE ingest_nobody")
            owner.commit()

    assert code == 1
    assert "SELECT on alembic_version" in found["rights"][1]
    for check in ("rights", "database"):
        assert found[check][0] == "fail"
        assert "deploy/roles.sql" in found[check][1]


def test_doctor_warns_of_a_role_that_may_create_tables_though_it_owns_none(
    database_url: str, application_url: str, broker_url: str
) -> None:
    with closing(psycopg2.connect(database_url)) as owner, owner.cursor() as cursor:
        cursor.execute("GRANT CREATE ON SCHEMA public TO ingest_app")
        owner.commit()
    code, found = examine(settings_for(application_url, broker_url), "--allow-unsafe-durability")

    assert (code, found["role"][0]) == (0, "warn")
    assert found["role"][1].startswith("may create tables:")


def test_doctor_warns_of_the_owner_of_the_tables_though_it_may_create_none(
    database_url: str, broker_url: str
) -> None:
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_roles WHERE rolname = 'ingest_owner'")
        if cursor.fetchone() is None:
            cursor.execute("CREATE ROLE ingest_owner LOGIN")
        for table in ("users", "events", "events_default", "idempotency_keys", "alembic_version"):
            cursor.execute(f"ALTER TABLE {table} OWNER TO ingest_owner")
        for function in ("ingest_ensure_partitions", "ingest_drop_partitions"):
            cursor.execute(f"ALTER FUNCTION {function} OWNER TO ingest_owner")
        cursor.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        connection.commit()
    url = make_url(database_url).set(username="ingest_owner", password=None)
    env = settings_for(url.render_as_string(hide_password=False), broker_url)
    code, found = examine(env, "--allow-unsafe-durability")

    assert (code, found["role"][0]) == (0, "warn")
    assert found["role"][1].startswith("owns the tables:")


@pytest.mark.parametrize("call", ["ingest_ensure_partitions(7)", "ingest_drop_partitions(1)"])
def test_a_role_that_is_not_named_may_not_keep_partitions(database_url: str, call: str) -> None:
    """The functions act with the rights of their owner."""
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE ROLE ingest_stranger")
        cursor.execute("GRANT USAGE ON SCHEMA public TO ingest_stranger")
        cursor.execute("SET ROLE ingest_stranger")
        with pytest.raises(InsufficientPrivilege, match=call.partition("(")[0]):
            cursor.execute(f"SELECT {call}")


def test_functions_with_the_rights_of_their_owner_look_nowhere_else(database_url: str) -> None:
    """A caller's own path, or temporary tables, could have them do anything."""
    with closing_engine(database_url) as engine, engine.connect() as connection:
        found = connection.execute(
            text(
                "SELECT proname, proconfig FROM pg_proc"
                " WHERE prosecdef AND pronamespace = 'public'::regnamespace"
            )
        ).all()

    assert {name for name, _ in found} >= {"ingest_ensure_partitions", "ingest_drop_partitions"}
    for name, config in found:
        assert "search_path=public, pg_temp" in (config or ()), name


def test_the_role_can_keep_partitions_and_retention(as_application: Engine) -> None:
    with as_application.begin() as connection:
        assert retention.ensure_partitions(connection, days_ahead=9) == 2
        assert retention.drop_old_events(connection, days=300) == 0
        assert retention.forget_old_keys(connection, days=300) == (0, 0)


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
