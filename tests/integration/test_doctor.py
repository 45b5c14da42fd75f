"""`ingest-service doctor` finds what is wrong, and its exit code says so."""

import subprocess
from collections.abc import Mapping
from contextlib import closing

import psycopg2
import pytest

from tests.kit.server import BIN, settings_for


def examine(env: Mapping[str, str], *options: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """Run the command; return its exit code, and verdict and text by check."""
    done = subprocess.run(
        [BIN / "ingest-service", "doctor", *options],
        env=dict(env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = {}
    for line in done.stdout.splitlines():
        verdict, _, rest = line.partition(" ")
        check, _, text = rest.strip().partition(": ")
        found[check] = (verdict, text)
    return done.returncode, found


@pytest.fixture
def env(database_url: str, broker_url: str) -> dict[str, str]:
    """Settings that are in order, but for durability, which the tests' server has off."""
    return settings_for(database_url, broker_url)


def test_switched_off_durability_fails_unless_it_is_allowed(env: dict[str, str]) -> None:
    code, found = examine(env)
    assert code == 1
    assert found["durability"][0] == "fail"
    assert "fsync" in found["durability"][1]

    code, found = examine(env, "--allow-unsafe-durability")
    assert (code, found["durability"][0]) == (0, "warn")
    in_order = (
        "database",
        "clock",
        "schema",
        "version",
        "partitions",
        "broker",
        "keys",
        "listener",
    )
    assert {check: found[check][0] for check in in_order} == dict.fromkeys(in_order, "ok")


@pytest.mark.parametrize(
    "setting, value, check",
    [
        ("INGEST_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none", "database"),
        ("INGEST_BROKER_URL", "redis://127.0.0.1:1/0", "broker"),
        ("INGEST_JWT_ALGORITHM", "RS256", "keys"),
    ],
)
def test_what_does_not_work_fails_and_is_named(
    env: dict[str, str], setting: str, value: str, check: str
) -> None:
    code, found = examine(env | {setting: value}, "--allow-unsafe-durability")
    assert code == 1
    assert found[check][0] == "fail"
    assert "INGEST_" in found[check][1]


def test_a_listener_in_the_clear_fails_and_is_a_warning_where_it_is_meant(
    env: dict[str, str],
) -> None:
    env |= {"INGEST_LISTEN": "0.0.0.0:50051"}
    code, found = examine(env, "--allow-unsafe-durability")
    assert (code, found["listener"][0]) == (1, "fail")
    assert "INGEST_PLAINTEXT" in found["listener"][1]

    code, found = examine(env | {"INGEST_PLAINTEXT": "true"}, "--allow-unsafe-durability")
    assert (code, found["listener"][0]) == (0, "warn")


def test_events_that_nobody_processes_are_a_warning(env: dict[str, str], database_url: str) -> None:
    code, found = examine(env, "--allow-unsafe-durability")
    assert (code, found["backlog"][0]) == (0, "ok")

    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO events (user_id, id, received_at, occurred_at, next_attempt_at, type,"
            " source, subject, payload) VALUES (gen_random_uuid(), gen_random_uuid(), now(), now(),"
            " now() - interval '90 s', 'a', '', '', 'null')"
        )
        connection.commit()
    code, found = examine(env, "--allow-unsafe-durability")
    assert (code, found["backlog"][0]) == (0, "warn")
    assert "due for 9" in found["backlog"][1]


def test_an_old_schema_fails(env: dict[str, str], database_url: str) -> None:
    connection = psycopg2.connect(database_url)
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE alembic_version SET version_num = '0000'")
    connection.close()
    code, found = examine(env, "--allow-unsafe-durability")
    assert (code, found["schema"][0]) == (1, "fail")
    assert "ingest-service migrate" in found["schema"][1]
