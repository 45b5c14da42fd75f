"""The kit itself: its servers and processes start, stop, die and come back."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.kit.databases import fresh_database
from tests.kit.processes import Process, Processes, has_ended
from tests.kit.services import Postgres, Redis, start_postgres, start_redis
from tests.kit.waiting import eventually


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL for this file alone."""
    server = start_postgres()
    yield server
    server.remove()


@pytest.fixture(scope="module")
def persistent_redis() -> Iterator[Redis]:
    """A Redis for this file alone, which keeps its data."""
    server = start_redis(persistent=True)
    yield server
    server.remove()


def _query(url: str, statement: str) -> object:
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def test_committed_rows_survive_every_way_to_end_postgres(postgres: Postgres) -> None:
    """Stop modes and SIGKILL alike leave the committed row, on the same port."""
    _query(postgres.url, "CREATE TABLE kept AS SELECT 1 AS n")

    for mode in ("smart", "fast", "immediate"):
        postgres.restart(mode)
        assert _query(postgres.url, "SELECT n FROM kept") == 1
    postgres.kill()
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(postgres.url)
    postgres.start()

    assert _query(postgres.url, "SELECT n FROM kept") == 1


def test_a_paused_postgres_answers_after_it_is_resumed(postgres: Postgres) -> None:
    """Freezing reaches the server processes of open connections too."""
    with closing(psycopg2.connect(postgres.url)) as connection, connection.cursor() as cursor:
        postgres.pause()
        with pytest.raises(psycopg2.OperationalError):
            psycopg2.connect(postgres.url, connect_timeout=2)
        postgres.resume()
        cursor.execute("SELECT 1")

        assert cursor.fetchone() == (1,)


def test_only_a_durable_postgres_waits_for_the_disk() -> None:
    """Tests of durability get fsync; all others get speed."""
    server = start_postgres(durable=True)
    try:
        assert _query(server.url, "SHOW fsync") == "on"
        assert _query(server.url, "SHOW full_page_writes") == "on"
    finally:
        server.remove()


def test_a_removed_server_leaves_neither_process_nor_folder() -> None:
    """Everything the kit makes goes away with it."""
    server = start_postgres()
    pid = server.pid

    server.remove()

    assert has_ended(pid)
    assert not server.folder.exists()


def test_a_fresh_database_is_dropped_even_while_in_use(postgres_url: str) -> None:
    """A test that leaks a connection harms no other."""
    with fresh_database(postgres_url) as url:
        leaked = psycopg2.connect(url)
        assert _query(url, "SELECT current_database()") != "postgres"

    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(url)
    leaked.close()


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_has_a_migrated_database_of_its_own(database_url: str, turn: int) -> None:
    """What one test writes, the next does not see."""
    assert _query(database_url, "SELECT count(*) FROM events") == 0
    assert _query(database_url, "SELECT count(*) FROM pg_tables WHERE tablename = 'mark'") == 0

    _query(database_url, f"CREATE TABLE mark AS SELECT {turn} AS turn")


def test_persistent_redis_keeps_its_data_over_a_kill(persistent_redis: Redis) -> None:
    """With appendonly and appendfsync always nothing that was answered is lost."""
    with closing(redis.Redis.from_url(persistent_redis.url)) as client:
        client.set("kept", "yes")
        persistent_redis.kill()
        persistent_redis.start()

        assert client.get("kept") == b"yes"


def test_a_paused_redis_times_out_and_answers_again(persistent_redis: Redis) -> None:
    """A paused server is a stalled one, not a refused connection."""
    once = Retry(NoBackoff(), 0)
    with closing(redis.Redis(port=persistent_redis.port, socket_timeout=0.2, retry=once)) as client:
        persistent_redis.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        persistent_redis.resume()

        assert client.ping()


def test_redis_without_persistence_comes_back_empty() -> None:
    """That is what the service must bear: queues that vanish."""
    server = start_redis()
    with closing(redis.Redis.from_url(server.url)) as client:
        client.set("lost", "yes")
        server.restart()
        assert client.get("lost") is None
    server.remove()


def test_the_broker_is_empty_at_the_start_of_a_test(broker_url: str) -> None:
    """Whatever another test left there is gone."""
    with closing(redis.Redis.from_url(broker_url)) as client:
        assert client.dbsize() == 0


def _is_up(process: Process) -> bool:
    return "up" in process.stdout()


def test_a_process_is_waited_for_and_its_output_kept(processes: Processes) -> None:
    """Ready means that the condition held, not that some time has passed."""
    process = processes.start("sh", "-c", "echo oh >&2; echo up; exec sleep 60", ready=_is_up)

    process.terminate()

    assert process.wait(5) == -signal.SIGTERM
    assert process.stdout() == "up\n"
    assert process.stderr() == "oh\n"


def test_a_process_that_ends_before_it_is_ready_is_an_error(processes: Processes) -> None:
    """The message shows what it said."""
    with pytest.raises(RuntimeError, match="no such luck"):
        processes.start(
            sys.executable, "-c", "raise SystemExit('no such luck')", ready=lambda _: False
        )


def test_killing_the_group_ends_the_children_too(processes: Processes) -> None:
    """SIGKILL of one process leaves its children; of the group, nothing."""
    process = processes.start("sh", "-c", "sleep 60 & echo $!; wait", ready=Process.stdout)
    child = int(process.stdout())

    process.kill()
    process.wait(5)
    assert not has_ended(child)
    process.kill_group()

    eventually(lambda: has_ended(child), timeout=5)


def test_servers_end_with_a_killed_test_run() -> None:
    """A SIGKILL of the test run leaves no server behind."""
    program = """
import time
from tests.kit.services import start_postgres, start_redis
postgres, redis = start_postgres(), start_redis()
print(postgres.pid, redis.pid, postgres.folder, redis.folder, flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        *pids, postgres_folder, redis_folder = run.stdout.readline().split()
        run.kill()

    eventually(lambda: all(has_ended(int(pid)) for pid in pids))
    shutil.rmtree(postgres_folder)
    shutil.rmtree(redis_folder)
