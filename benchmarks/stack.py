"""The system under test: a durable PostgreSQL, a Redis, servers and workers, all our own."""

import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2
import redis
from psycopg2 import sql

from benchmarks.database import Database
from benchmarks.keyed import Keys
from benchmarks.sent import Sent
from benchmarks.usage import CpuMeter
from eventstore import migrations
from eventstore.settings import Settings
from ingest_service.auth import issue_token
from tests.kit.databases import close_database, fresh_database
from tests.kit.processes import Process, Processes
from tests.kit.services import start_postgres, start_redis

#: Every setting that is not PostgreSQL's default; fsync, full_page_writes and synchronous_commit
#: are on. WAL is large enough that no checkpoint falls into a run by chance.
POSTGRES_SETTINGS: Mapping[str, str] = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "max_connections": "200",
    # Loaded, and counting nothing until a probe asks for it.
    "shared_preload_libraries": "pg_stat_statements",
}
#: How many processes `ingest-service worker` has unless told otherwise.
DEFAULT_WORKER_PROCESSES: int = Settings.model_fields["worker_processes"].default
_BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A gRPC server that runs."""

    process: Process
    address: str
    headers: tuple[str, ...]
    #: What the probes have sent to it so far.
    sent: Sent = field(default_factory=Sent)
    #: Of the events that have one.
    keys: Keys = field(default_factory=Keys)

    def url(self, path: str) -> str:
        """Return the URL that h2load posts to."""
        return f"http://{self.address}{path}"


@dataclass(slots=True, kw_only=True)
class Bench:
    """Starts what a probe needs and ends it afterwards."""

    folder: Path
    quick: bool
    postgres_url: str
    postgres_pid: int
    redis_url: str
    redis_pid: int
    template: str
    #: Our own interpreter, for the programs of the bench.
    python: Path = Path(sys.executable)
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(48))

    def size(self, full: int, quick: int) -> int:
        """Choose a number by the length of the run."""
        return quick if self.quick else full

    @contextmanager
    def database(self) -> Iterator[Database]:
        """Give a migrated and empty database, and an empty Redis; drop the database afterwards."""
        with redis.Redis.from_url(self.redis_url) as client:
            client.flushall()
        with fresh_database(self.postgres_url, self.template) as url:
            database = Database(url)
            database.settle()
            yield database

    @contextmanager
    def processes(self) -> Iterator[Processes]:
        """Start processes, and end them with the block."""
        folder = Path(tempfile.mkdtemp(prefix="processes-", dir=self.folder))
        started = Processes(folder)
        try:
            yield started
        finally:
            started.close()

    @contextmanager
    def server(
        self, database: Database, *, processes: int = 1, env: Mapping[str, str] | None = None
    ) -> Iterator[Server]:
        """Run `ingest-service serve`."""
        with self.processes() as started:
            command = (_BIN / "ingest-service", "serve")
            settings = {
                **self.settings(database),
                "INGEST_PROCESSES": str(processes),
                **(env or {}),
            }
            yield self.start_server(started, command, settings, ready=processes)

    @contextmanager
    def workers(self, database: Database, *, processes: int | None = None) -> Iterator[Process]:
        """Run `ingest-service worker` with so many processes; None leaves it to the product."""
        env = self.settings(database)
        if processes is not None:
            env["INGEST_WORKER_PROCESSES"] = str(processes)
        expected = processes or DEFAULT_WORKER_PROCESSES
        with self.processes() as started:
            yield started.start(
                *(_BIN / "ingest-service", "worker"),
                env=env,
                ready=lambda process: process.output().count("worker_started") >= expected,
            )

    def start_server(
        self,
        started: Processes,
        command: tuple[str | Path, ...],
        env: Mapping[str, str],
        *,
        ready: int = 1,
    ) -> Server:
        """Start a gRPC server that logs `server_started`, as often as it has processes."""
        address = f"127.0.0.1:{free_port()}"
        process = started.start(
            *command,
            env={**env, "INGEST_LISTEN": address},
            ready=lambda process: process.output().count("server_started") >= ready,
        )
        return Server(process=process, address=address, headers=self.headers())

    def settings(self, database: Database | None = None) -> dict[str, str]:
        """Return the environment of servers and workers."""
        env = {"INGEST_JWT_SECRET": self.secret, "INGEST_LOG_LEVEL": "INFO"}
        if database is not None:
            env |= {"INGEST_DATABASE_URL": database.url, "INGEST_BROKER_URL": self.redis_url}
        return env

    def headers(self) -> tuple[str, ...]:
        """Return the HTTP headers of a gRPC call by the bench's user."""
        return (
            "content-type: application/grpc",
            "te: trailers",
            f"authorization: Bearer {self.token()}",
        )

    def token(self) -> str:
        """Return a token that outlives the run."""
        settings = Settings.load(jwt_secret=self.secret)
        scopes = ("events:write", "events:read")
        return issue_token(
            settings, subject="bench", email="bench@example.org", scopes=scopes, ttl_seconds=80_000
        )

    def cpu(self, **components: Process) -> CpuMeter:
        """Start metering these processes, PostgreSQL and Redis."""
        roots = {name: [process.pid] for name, process in components.items()}
        return CpuMeter({**roots, "postgres": [self.postgres_pid], "redis": [self.redis_pid]})


@contextmanager
def open_bench(*, quick: bool) -> Iterator[Bench]:
    """Start PostgreSQL and Redis, and end them afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ingest-bench-"))
    postgres, broker = start_postgres(durable=True), start_redis()
    try:
        _configure(postgres.url, POSTGRES_SETTINGS)
        postgres.restart()
        _configure(postgres.url, {"pg_stat_statements.track": "none"})
        with fresh_database(postgres.url) as url:
            migrations.upgrade(url)
            yield Bench(
                folder=folder,
                quick=quick,
                postgres_url=postgres.url,
                postgres_pid=postgres.pid,
                redis_url=broker.url,
                redis_pid=broker.pid,
                template=close_database(postgres.url, url),
            )
    finally:
        broker.remove()
        postgres.remove()
        shutil.rmtree(folder, ignore_errors=True)


def _configure(url: str, settings: Mapping[str, str]) -> None:
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for name, value in settings.items():
                statement = sql.SQL("ALTER SYSTEM SET {} = {}")
                name_parts = sql.Identifier(*name.split("."))
                cursor.execute(statement.format(name_parts, sql.Literal(value)))
            cursor.execute("SELECT pg_reload_conf()")


def free_port() -> int:
    """Return a port that nobody listens on just now, below those that the kernel gives away."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = low - 1 - secrets.randbelow(min(10_000, low - 2_000))
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
