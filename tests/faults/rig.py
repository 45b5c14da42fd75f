"""The system under test as real processes, with a proxy in every line and supervised."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

import jwt

from tests.faults.ledger import Ledger, PostgresLedger, execute
from tests.faults.supervisor import Member
from tests.kit.processes import Process, start_process
from tests.kit.proxy import Proxy
from tests.kit.services import Postgres, Redis, free_port

SECRET = "0123456789abcdef" * 4
SERVICE = Path(sys.executable).with_name("ingest-service")
#: On PYTHONPATH of the processes under test: an enricher that obeys the payload, and planted bugs.
INJECT = Path(__file__).with_name("inject")
PYTHONPATH = os.pathsep.join(filter(None, (str(INJECT), os.environ.get("PYTHONPATH"))))
#: Members that may exist; the second of each is started where a row asks for it.
_SERVERS = 2
_WORKERS = 2

#: Shorter than the defaults, so that a row takes seconds; the long form runs with the defaults.
BRISK: Mapping[str, str] = {
    "INGEST_DISPATCH_GRACE_SECONDS": "1",
    "INGEST_SWEEP_SECONDS": "0.25",
    "INGEST_LEASE_SECONDS": "4",
    "INGEST_DRAIN_SECONDS": "5",
}


class System(Protocol):
    """What a trial needs of the system under test."""

    #: For journals and output.
    folder: Path

    @property
    def ledger(self) -> Ledger:
        """The database as the verdict sees it."""

    @property
    def members(self) -> Sequence[Member]:
        """Every process that may run."""

    def target(self, server: int = 0) -> str:
        """Return where clients find a server."""


class Lines:
    """The proxies of one process: to the database and to the broker."""

    def __init__(self, database_port: int, broker_port: int) -> None:
        self.database = Proxy(database_port)
        self.broker = Proxy(broker_port)


class Rig:
    """PostgreSQL, Redis, servers and workers; `start` starts the first of each."""

    def __init__(
        self,
        *,
        durable: bool = False,
        settings: Mapping[str, str] = BRISK,
        workers: int = 2,
        environment: Mapping[str, str] | None = None,
        disk: Path | None = None,
    ) -> None:
        """Start the databases and migrate; nothing of the service runs yet."""
        self.folder = Path(tempfile.mkdtemp(prefix="ingest-faults-"))
        self._settings = dict(settings)
        self._environment = dict(environment or {})
        self._used_workers = workers
        self.postgres = Postgres(durable=durable, parent=disk)
        self.redis = Redis(persistent=False)
        self.postgres.start()
        self.redis.start()
        admin = urlsplit(self.postgres.url)
        execute(
            self.postgres.url, "CREATE ROLE ingest LOGIN", "CREATE DATABASE ingest OWNER ingest"
        )
        #: Straight to the database `ingest`, past all proxies, as the superuser.
        self.url = urlunsplit(admin._replace(path="/ingest"))
        self.ports = [free_port() for _ in range(_SERVERS)]
        self.fronts = [Proxy(port) for port in self.ports]
        self.server_lines = [self._lines() for _ in range(_SERVERS)]
        self.worker_lines = [self._lines() for _ in range(_WORKERS)]
        self.migrate()
        self.ledger: Ledger = PostgresLedger(self.url)
        self.ledger.install()
        self.servers = [self._server(number) for number in range(_SERVERS)]
        self.workers = [self._worker(number) for number in range(_WORKERS)]

    @property
    def front(self) -> Proxy:
        """Between the clients and the first server."""
        return self.fronts[0]

    @property
    def server(self) -> Member:
        """The first server."""
        return self.servers[0]

    @property
    def members(self) -> Sequence[Member]:
        """Everything that may run."""
        return (*self.servers, *self.workers)

    @property
    def used(self) -> Sequence[Member]:
        """What runs unless a row says otherwise."""
        return (self.server, *self.workers[: self._used_workers])

    @property
    def proxies(self) -> Sequence[Proxy]:
        """Every line."""
        lines = (*self.server_lines, *self.worker_lines)
        return (*self.fronts, *(proxy for line in lines for proxy in (line.database, line.broker)))

    def target(self, server: int = 0) -> str:
        """Return where clients find a server: its front proxy."""
        return f"127.0.0.1:{self.fronts[server].port}"

    def start(self) -> None:
        """Start one server and the workers."""
        self.server.start()
        for worker in self.workers[: self._used_workers]:
            worker.start()

    def restore(self) -> None:
        """Take back every fault: lines, databases, processes."""
        for proxy in self.proxies:
            proxy.heal()
        if not self.redis.is_running:
            self.redis.start()
        if not self.postgres.is_running:
            self.postgres.start()
        for member in self.members:
            if member in self.used:
                member.ensure()
            elif member.started and member.up:
                member.stop()

    @contextmanager
    def changed(self, *members: Member, **environment: str) -> Iterator[None]:
        """Run these members with other settings, and end them afterwards; `restore` starts them."""
        before = [member.env for member in members]
        for member in members:
            if member.started and member.up:
                member.stop()
            member.env = {**member.env, **environment}
            member.start()
        try:
            yield
        finally:
            for member, kept in zip(members, before, strict=True):
                member.discard()
                member.env = kept

    def close(self) -> None:
        """End everything."""
        for member in self.members:
            if member.started:
                member.discard()
        for proxy in self.proxies:
            proxy.close()
        self.redis.remove()
        self.postgres.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    def migrate(self) -> Process:
        """Run `ingest-service migrate` to its end."""
        folder = self.folder / f"migrate-{time.monotonic_ns()}"
        folder.mkdir()
        process = start_process(
            [SERVICE, "migrate"], folder, env=self.environment(self.server_lines[0])
        )
        assert process.wait(30) == 0, process.output()
        return process

    def environment(self, lines: Lines, **more: str) -> dict[str, str]:
        """Return the settings of a process that uses these lines."""
        return {
            **self._settings,
            **self._environment,
            "INGEST_DATABASE_URL": f"postgresql://ingest@127.0.0.1:{lines.database.port}/ingest",
            "INGEST_BROKER_URL": f"redis://127.0.0.1:{lines.broker.port}/0",
            "INGEST_JWT_SECRET": SECRET,
            "PYTHONPATH": PYTHONPATH,
            **more,
        }

    def _lines(self) -> Lines:
        return Lines(self.postgres.port, self.redis.port)

    def _server(self, number: int) -> Member:
        env = self.environment(
            self.server_lines[number], INGEST_LISTEN=f"127.0.0.1:{self.ports[number]}"
        )
        return Member(
            f"server{number}",
            [SERVICE, "serve"],
            self.folder / f"server{number}",
            env=env,
            ready=lambda process: "server_started" in process.stderr(),
        )

    def _worker(self, number: int) -> Member:
        return Member(
            f"worker{number}",
            [SERVICE, "worker"],
            self.folder / f"worker{number}",
            # One process each, so that a fault meets all of a worker and nothing of its neighbour.
            env=self.environment(self.worker_lines[number], INGEST_WORKER_PROCESSES="1"),
            ready=lambda process: "worker_started" in process.stderr(),
        )


def make_token(subject: str, *, issued: float = 0.0, ttl: int = 3_600) -> str:
    """Sign a token for reading and writing; `issued` is seconds from now."""
    now = int(time.time() + issued)
    claims = {
        "iss": "ingest",
        "aud": "ingest",
        "sub": subject,
        "scope": "events:write events:read",
        "iat": now,
        "exp": now + ttl,
    }
    return jwt.encode(claims, SECRET, algorithm="HS256")
