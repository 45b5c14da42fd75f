"""The service under test: real `ingest-service` processes, and the fixtures that suites share."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from sqlalchemy import Engine, select

from eventstore import migrations
from eventstore.engine import build_engine
from eventstore.schema import events, users
from eventstore.values import EventKey
from tests.kit.caller import Caller
from tests.kit.databases import fresh_database
from tests.kit.processes import Process, Processes, start_process
from tests.kit.services import free_port
from tests.kit.tokens import SECRET, make_token
from worker.pipeline import Enricher
from worker.processor import Processor

#: The folder of our own interpreter's commands.
BIN = Path(sys.executable).parent
DATABASES = ("postgresql", "sqlite")


def records(process: Process) -> list[dict[str, Any]]:
    """Return the log records of a process; every line must be one."""
    lines = process.stderr().rpartition("\n")[0].splitlines()
    return [json.loads(line) for line in lines]


def record(process: Process, name: str) -> dict[str, Any] | None:
    """Return the first log record of this name, or None."""
    return next((found for found in records(process) if found["event"] == name), None)


class Service:
    """A running server process on a port of its own."""

    def __init__(self, process: Process, env: Mapping[str, str]) -> None:
        """Take a process that is ready, and its settings."""
        started = record(process, "server_started")
        assert started is not None
        self.process = process
        self.env = env
        self.database_url = env.get("INGEST_DATABASE_URL", "")
        self.port: int = started["port"]
        self.address = f"127.0.0.1:{self.port}"
        self.channel = grpc.insecure_channel(self.address)

    def caller(self, subject: str = "", /, **options: Any) -> Caller:
        """Return a caller with a token; without a subject it is somebody new."""
        subject = subject or f"user-{uuid4().hex}"
        return Caller(self.channel, make_token(subject, **options), subject)

    def nobody(self) -> Caller:
        """Return a caller without a token."""
        return Caller(self.channel, "")

    def process_all(self, caller: Caller, *enrichers: Enricher) -> None:
        """Process the caller's events here and now, as a worker would."""
        with closing_engine(self.database_url) as engine:
            processor = Processor(engine, enrichers=enrichers, max_attempts=5, lease_seconds=15)
            processor.first_delivery(keys_of(engine, caller.subject))

    def stop(self) -> int:
        """End the process by SIGTERM and return its exit code."""
        self.channel.close()
        self.process.terminate()
        return self.process.wait()


def keys_of(engine: Engine, subject: str) -> list[EventKey]:
    """Return the keys of a user's events in order, as the database has them."""
    statement = (
        select(events.c.user_id, events.c.id)
        .join(users, users.c.id == events.c.user_id)
        .where(users.c.subject == subject)
        .order_by(events.c.id)
    )
    with engine.connect() as connection:
        return [EventKey(*row) for row in connection.execute(statement)]


@contextmanager
def closing_engine(url: str) -> Iterator[Engine]:
    """Give an engine like a worker's, and dispose of it."""
    engine = build_engine(url, name="ingest-tests", pool_size=4, keyed=True)
    try:
        yield engine
    finally:
        engine.dispose()


def settings_for(database_url: str, broker_url: str, **more: str) -> dict[str, str]:
    """Return the environment of a server or worker; keywords are settings without INGEST_."""
    env = {
        "DATABASE_URL": database_url,
        "BROKER_URL": broker_url,
        "JWT_SECRET": SECRET,
        "LISTEN": "127.0.0.1:0",
        "LOG_LEVEL": "DEBUG",
        "DRAIN_SECONDS": "5",
    } | more
    return {f"INGEST_{name}": value for name, value in env.items()}


def two_processes(processes: Processes, database_url: str, redis_url: str, **more: str) -> Service:
    """Start a server of two processes, and return it once both take calls."""
    more |= {"PROCESSES": "2", "LISTEN": f"127.0.0.1:{free_port()}"}
    env = settings_for(database_url, redis_url, **more)
    process = processes.start(
        BIN / "ingest-service",
        "serve",
        env=env,
        ready=lambda started: started.stderr().count("server_started") == 2,
    )
    return Service(process, env)


@contextmanager
def running(folder: Path, env: Mapping[str, str], command: str = "serve") -> Iterator[Service]:
    """Run a server process; at the end it must stop in good order."""
    folder.mkdir(parents=True, exist_ok=True)
    process = start_process(
        [BIN / "ingest-service", command],
        folder,
        env=env,
        ready=lambda started: record(started, "server_started"),
    )
    service = Service(process, env)
    try:
        yield service
        if process.returncode is None:
            assert service.stop() == 0, process.output()
    finally:
        service.channel.close()
        process.kill_group()


@contextmanager
def shared_database(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """Give a migrated database of the kind that a fixture is parametrised with, for many tests."""
    if request.param == "postgresql":
        server, template = (
            request.getfixturevalue(name) for name in ("postgres_url", "migrated_template")
        )
        with fresh_database(server, template()) as url:
            yield url
    else:
        url = f"sqlite:///{folder / 'ingest.db'}"
        migrations.upgrade(url)
        yield url


@pytest.fixture(scope="session", params=DATABASES)
def service(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    redis_url: str,
) -> Iterator[Service]:
    """A server on each of the databases, shared by all tests: each test is a user of its own."""
    folder = tmp_path_factory.mktemp("service")
    with shared_database(request, folder) as url:
        env = settings_for(url, redis_url, STREAM_IDLE_SECONDS="2")
        with running(folder, env) as started:
            yield started


@pytest.fixture
def alice(service: Service) -> Caller:
    """Somebody who has never called before."""
    return service.caller()


@pytest.fixture
def bob(service: Service) -> Caller:
    """Somebody else who has never called before."""
    return service.caller()


@pytest.fixture(params=DATABASES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty migrated database is, of either kind, for this test alone."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("database_url"))
    url = f"sqlite:///{tmp_path / 'ingest.db'}"
    migrations.upgrade(url)
    return url


@pytest.fixture
def store(store_url: str) -> Iterator[Engine]:
    """An engine on an empty migrated database of either kind."""
    with closing_engine(store_url) as engine:
        yield engine


Start = Callable[..., Service]


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Start]:
    """Start servers on a database of the test's own; they are ended with it."""
    with ExitStack() as opened:
        numbers = count()

        def start(env: Mapping[str, str], command: str = "serve") -> Service:
            return opened.enter_context(running(tmp_path / f"server-{next(numbers)}", env, command))

        yield start
