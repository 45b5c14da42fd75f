"""`ingest-service doctor` finds what is wrong, and its exit code says so."""

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis
from sqlalchemy import text

from eventstore import migrations
from eventstore.inspection import DatabaseFacts
from eventstore.settings import Settings
from ingest_service.doctor_database import judge_postgres
from ingest_service.findings import Finding
from tests.kit.databases import alter_database
from tests.kit.days import day, now
from tests.kit.forks import run
from tests.kit.key_server import Key, KeyServer
from tests.kit.rows import add
from tests.kit.server import BIN, closing_engine, settings_for
from tests.kit.services import start_redis
from tests.kit.tokens import SECRET

#: Plants for processes, such as a wall clock that is off.
INJECT = Path(__file__).parents[1] / "faults" / "inject"


def examine(
    env: Mapping[str, str], *options: str, through: Sequence[str] = ()
) -> tuple[int, dict[str, tuple[str, str]]]:
    """Run the command; return its exit code, and verdict and text by check.

    `through` is a command that runs the one behind it, which is then no fork.
    """
    if through:
        done = subprocess.run(
            [*through, BIN / "ingest-service", "doctor", *options],
            env=dict(env),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        code, said = done.returncode, done.stdout
    else:
        code, said, _ = run("doctor", *options, env=env)
    found = {}
    for line in said.splitlines():
        verdict, _, rest = line.partition(" ")
        check, _, told = rest.strip().partition(": ")
        found[check] = (verdict, told)
    return code, found


@pytest.fixture
def env(database_url: str, broker_url: str) -> dict[str, str]:
    """Settings that are in order, but for durability, which the tests' server has off."""
    return settings_for(database_url, broker_url)


def test_switched_off_durability_fails_unless_it_is_allowed(env: dict[str, str]) -> None:
    code, found = examine(env)
    assert code == 1
    assert found["durability"][0] == "fail"
    assert found["durability"][1].startswith("fsync, full_page_writes off:")

    code, found = examine(env, "--allow-unsafe-durability")
    assert (code, found["durability"][0]) == (0, "warn")
    in_order = (
        "database",
        "clock",
        "schema",
        "writes",
        "version",
        "encoding",
        "partitions",
        "broker",
        "keys",
        "listener",
        "rights",
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


KEY = Key("key")
#: What a key server answers, and what is told of it.
ANSWERS = {
    "an error": (b"HTTP/1.1 404 canary\r\n\r\n", "HTTP status 404"),
    "a redirect": (b"HTTP/1.1 302 canary\r\nLocation: https://x/\r\n\r\n", "HTTP status 302"),
    "no HTTP": (b"canary\r\n", "BadStatusLine"),
    "no set": (b"HTTP/1.1 200 OK\r\n\r\n<p>canary</p>", "it is no JWK Set"),
    "no key": (b'HTTP/1.1 200 OK\r\n\r\n{"keys": []}', "it holds no key for ES256"),
}
CHECK_URL = "check that INGEST_JWT_JWKS_URL is your identity provider's JWK Set"


@pytest.fixture
def jwks_env(env: dict[str, str]) -> dict[str, str]:
    """Settings with keys at a URL, which is not set yet."""
    del env["INGEST_JWT_SECRET"]
    return env | {"INGEST_JWT_ALGORITHM": "ES256"}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_key_server_that_answers_with_no_keys_fails_until_it_does(
    jwks_env: dict[str, str], key_server: KeyServer, name: str
) -> None:
    key_server.raw, why = ANSWERS[name]
    jwks_env |= {"INGEST_JWT_JWKS_URL": key_server.url}
    code, found = examine(jwks_env, "--allow-unsafe-durability")
    assert (code, found["keys"][0]) == (1, "fail")
    assert found["keys"][1].startswith(f"{why}: {CHECK_URL}")

    key_server.raw = b""
    key_server.publish(KEY)
    code, found = examine(jwks_env, "--allow-unsafe-durability")
    assert (code, found["keys"]) == (0, ("ok", "ES256"))


@pytest.mark.parametrize(
    "url, why",
    [
        ("http://127.0.0.1:1/keys", f"Connection refused: {CHECK_URL}"),
        ("https://a b/keys", "INGEST_JWT_JWKS_URL cannot be used: the URL must be as https://"),
        ("http://[::1]:x/", "INGEST_JWT_JWKS_URL cannot be used: the URL must be as https://"),
    ],
)
def test_a_key_server_that_nobody_can_ask_fails_by_name(
    jwks_env: dict[str, str], url: str, why: str
) -> None:
    code, found = examine(jwks_env | {"INGEST_JWT_JWKS_URL": url}, "--allow-unsafe-durability")
    assert (code, found["keys"][0]) == (1, "fail")
    assert found["keys"][1].startswith(why)


def test_a_database_that_takes_no_writes_fails(env: dict[str, str], database_url: str) -> None:
    """As a standby, or what somebody set to read only."""
    alter_database(database_url, "SET default_transaction_read_only = on")
    code, found = examine(env, "--allow-unsafe-durability")

    assert (code, found["writes"][0]) == (1, "fail")
    assert found["writes"][1].startswith("read only:")
    assert "default_transaction_read_only" in found["writes"][1]


def test_revocations_that_cannot_be_read_fail(env: dict[str, str], tmp_path: Path) -> None:
    env |= {"INGEST_JWT_REVOCATION_FILE": str(tmp_path / "nowhere.json")}
    code, found = examine(env, "--allow-unsafe-durability")

    assert (code, found["keys"][0]) == (1, "fail")


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


@pytest.mark.usefixtures("one_day")
def test_missing_days_and_a_used_default_partition_are_warnings_until_a_sweep(
    env: dict[str, str], database_url: str
) -> None:
    with closing_engine(database_url) as engine:
        with engine.begin() as connection:
            for offset in range(1, 8):
                connection.execute(text(f"DROP TABLE events_{day(offset)}"))
        add(engine, {}, received_at=now() + timedelta(days=5))
    code, found = examine(env, "--allow-unsafe-durability")
    assert code == 0
    for check in ("partitions", "default partition"):
        assert found[check][0] == "warn"
        assert "`ingest-service sweep`" in found[check][1]

    assert run("sweep", env=env).code == 0
    code, found = examine(env, "--allow-unsafe-durability")
    assert (code, found["default partition"]) == (0, ("ok", "empty"))
    assert found["partitions"][0] == "ok"


@pytest.mark.parametrize(
    "memory, policy, verdict",
    [("64mb", "allkeys-lru", "warn"), ("64mb", "noeviction", "ok"), ("0", "allkeys-lru", "ok")],
)
def test_a_redis_that_may_evict_messages_is_a_warning(
    env: dict[str, str], memory: str, policy: str, verdict: str
) -> None:
    server = start_redis()
    try:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", memory)
            client.config_set("maxmemory-policy", policy)
        env |= {"INGEST_BROKER_URL": server.url}
        code, found = examine(env, "--allow-unsafe-durability")
    finally:
        server.remove()

    assert (code, found["broker"][0]) == (0, verdict)
    assert ("maxmemory-policy noeviction" in found["broker"][1]) == (verdict == "warn")


@pytest.mark.parametrize("files, verdict", [("4095", "warn"), ("4096", "ok")])
def test_few_open_files_are_a_warning(env: dict[str, str], files: str, verdict: str) -> None:
    """As few as a server can have: of the two limits it raises the other one by itself."""
    limited = ("sh", "-c", f'ulimit -n {files} && ulimit -Sn 256 && exec "$0" "$@"')
    code, found = examine(env, "--allow-unsafe-durability", through=limited)

    assert (code, found["open files"][0]) == (0, verdict)
    assert found["open files"][1].partition(":")[0] == files
    assert ("ulimit -Hn" in found["open files"][1]) == (verdict == "warn")


def test_a_full_redis_is_called_full(env: dict[str, str]) -> None:
    server = start_redis()
    try:
        with redis.Redis.from_url(server.url) as client:
            client.set("what else there is", b"x" * (8 << 20))
            client.config_set("maxmemory", "4mb")
        code, found = examine(env | {"INGEST_BROKER_URL": server.url}, "--allow-unsafe-durability")
    finally:
        server.remove()

    assert (code, found["broker"][0]) == (1, "fail")
    assert "maxmemory" in found["broker"][1]
    assert "INGEST_BROKER_URL" not in found["broker"][1]


def test_a_broker_that_delivers_nothing_is_a_warning(env: dict[str, str]) -> None:
    code, found = examine(env | {"INGEST_BROKER_URL": "stub://"}, "--allow-unsafe-durability")

    assert (code, found["broker"][0]) == (0, "warn")
    assert "delivers nothing" in found["broker"][1]


def test_a_misspelt_setting_is_a_warning(env: dict[str, str]) -> None:
    assert "settings" not in examine(env, "--allow-unsafe-durability")[1]

    code, found = examine(env | {"INGEST_READ_THREAD": "9"}, "--allow-unsafe-durability")
    assert (code, found["settings"][0]) == (0, "warn")
    assert "INGEST_READ_THREAD" in found["settings"][1]

    # A name that is not UTF-8, where stdout takes nothing else.
    env |= {"INGEST_\udcff": "9", "PYTHONIOENCODING": "utf-8:strict"}
    code, found = examine(env, "--allow-unsafe-durability", through=["env"])
    assert (code, found["settings"][0]) == (0, "warn")
    assert r"INGEST_\udcff" in found["settings"][1]


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///:memory:", "sqlite:///s.db?mode=memory&uri=true"],
)
def test_a_database_in_memory_fails(url: str) -> None:
    code, found = examine({"INGEST_DATABASE_URL": url, "INGEST_JWT_SECRET": SECRET})

    assert (code, found["database"][0]) == (1, "fail")
    assert "must name a file" in found["database"][1]


@pytest.mark.parametrize("seconds, verdict", [("-60", "warn"), ("60", "warn"), ("0.1", "ok")])
def test_a_clock_that_is_off_is_a_warning(env: dict[str, str], seconds: str, verdict: str) -> None:
    env |= {"PYTHONPATH": str(INJECT), "FAULTS_PLANT": f"skew={seconds}"}
    code, found = examine(env, "--allow-unsafe-durability", through=["env"])

    assert (code, found["clock"][0]) == (0, verdict)
    assert ("run NTP" in found["clock"][1]) == (verdict == "warn")
    if verdict == "warn":
        # The other way round: how far ahead the database is.
        assert float(found["clock"][1].partition(" s")[0]) == pytest.approx(-float(seconds), abs=5)


def test_fewer_connections_than_are_taken_are_a_warning(env: dict[str, str]) -> None:
    assert examine(env, "--allow-unsafe-durability")[1]["connections"][0] == "ok"

    env |= {"INGEST_PROCESSES": "64", "INGEST_READ_THREADS": "64"}
    code, found = examine(env, "--allow-unsafe-durability")
    assert (code, found["connections"][0]) == (0, "warn")
    assert "raise max_connections" in found["connections"][1]


def judged(check: str, **other: Any) -> Finding:
    """Return what is made of a server that is in order, but for these facts."""
    facts = DatabaseFacts(
        version=150_018,
        unsafe=(),
        max_connections=100,
        connections=1,
        partitions_ahead=8,
        default_partition_used=False,
        overdue_seconds=0.0,
        encoding="UTF8",
        may_create=False,
        owns_tables=False,
    )
    findings = judge_postgres(
        replace(facts, **other), Settings.load(), allow_unsafe_durability=False
    )
    (found,) = (finding for finding in findings if finding.check == check)
    return found


@pytest.mark.parametrize("version, verdict", [(140_019, "fail"), (150_000, "ok")])
def test_an_old_postgresql_fails(version: int, verdict: str) -> None:
    """None is here to be asked, so this asks what is made of its number."""
    found = judged("version", version=version)

    assert found.verdict.value == verdict
    assert ("PostgreSQL 15" in found.text) == (verdict == "fail")


@pytest.mark.parametrize("encoding, verdict", [("SQL_ASCII", "fail"), ("UTF8", "ok")])
def test_a_database_of_another_encoding_fails(encoding: str, verdict: str) -> None:
    """Migrations make no tables in such a one."""
    found = judged("encoding", encoding=encoding)

    assert found.verdict.value == verdict
    assert found.text.startswith(encoding)
    assert ("ENCODING 'UTF8'" in found.text) == (verdict == "fail")


@pytest.mark.parametrize("used, verdict", [(99, "warn"), (1, "ok")])
def test_connections_that_others_have_are_not_ours(used: int, verdict: str) -> None:
    """So many would be in the way of the other tests."""
    found = judged("connections", max_connections=100, connections=used)

    assert found.verdict.value == verdict
    assert found.text.startswith(f"{100 - used} free")


def test_a_file_without_a_journal_for_readers_is_a_warning(tmp_path: Path) -> None:
    """On a file system that can share no memory, such as some of the network, there is no WAL."""
    file = tmp_path / "ingest.db"
    migrations.upgrade(f"sqlite:///file:{file}?vfs=unix-none&uri=true")
    url = f"sqlite:///file:{file}?vfs=unix-none&uri=true"
    code, found = examine({"INGEST_DATABASE_URL": url, "INGEST_JWT_SECRET": SECRET})

    assert (code, found["journal"][0]) == (0, "warn")
    assert not Path("file:").exists()
    assert "local disk" in found["journal"][1]


def test_an_old_schema_fails(env: dict[str, str], database_url: str) -> None:
    connection = psycopg2.connect(database_url)
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE alembic_version SET version_num = '0000'")
    connection.close()
    code, found = examine(env, "--allow-unsafe-durability")
    assert (code, found["schema"][0]) == (1, "fail")
    assert "ingest-service migrate" in found["schema"][1]


@pytest.mark.parametrize(
    "events, keys, verdict", [("7", "30", "warn"), ("30", "30", "ok"), ("0", "30", "ok")]
)
def test_keys_that_outlive_their_events_are_a_warning(
    env: dict[str, str], events: str, keys: str, verdict: str
) -> None:
    env |= {"INGEST_RETENTION_DAYS": events, "INGEST_IDEMPOTENCY_RETENTION_DAYS": keys}
    code, found = examine(env, "--allow-unsafe-durability")

    assert (code, found["retention"][0]) == (0, verdict)
    assert ("INGEST_IDEMPOTENCY_RETENTION_DAYS" in found["retention"][1]) == (verdict == "warn")
