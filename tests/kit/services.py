"""Private PostgreSQL and Redis instances: own port, own folder, own processes, all temporary.

Run as a program it names the Debian packages that are missing here, for scripts/test-services.
"""

import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import psycopg2
import redis

from tests.kit.processes import has_ended, leash
from tests.kit.waiting import eventually

#: The oldest PostgreSQL that the service supports.
OLDEST_POSTGRES = 15

#: Below the range that the kernel gives to clients, which could take the port of a stopped server.
_PORTS = range(20_000, 32_000)

#: Bytes of memory for a server's files: a run takes a tenth of it.
_PLENTY = 8 << 30

StopMode = Literal["smart", "fast", "immediate"]
_STOP_SIGNALS: dict[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}


class MissingServerError(Exception):
    """No usable server program is installed here; the text says what to install."""


def find_postgres() -> Path:
    """Return the folder of PostgreSQL's server programs, PATH first, then Debian's newest."""
    on_path = shutil.which("postgres")
    folders = [Path(on_path).resolve().parent] if on_path else []
    debian = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    folders += sorted(debian, key=lambda folder: int(folder.parent.name), reverse=True)
    for folder in folders:
        if (folder / "initdb").exists() and _postgres_version(folder) >= OLDEST_POSTGRES:
            return folder
    raise MissingServerError(
        f"no PostgreSQL {OLDEST_POSTGRES} or newer here: install postgresql (Debian, Ubuntu)"
        " or set TEST_DATABASE_URL"
    )


def find_redis() -> str:
    """Return the path of redis-server."""
    program = shutil.which("redis-server")
    if program is None:
        raise MissingServerError(
            "no redis-server here: install redis-server (Debian, Ubuntu) or set TEST_REDIS_URL"
        )
    return program


class Server:
    """One server process on one port of the loopback address, with one folder."""

    def __init__(self, name: str, parent: Path | None = None) -> None:
        """Reserve a folder and a port; `start` starts the process."""
        self.folder = Path(tempfile.mkdtemp(prefix=f"ingest-{name}-", dir=parent))
        self.port = free_port()
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The id of the running server process."""
        assert self._popen is not None, "the server is not running"
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        """Whether the server process was started and has not ended."""
        return self._popen is not None and self._popen.poll() is None

    def log(self) -> str:
        """Return what the server has written so far."""
        return (self.folder / "log").read_text(errors="replace")

    def kill(self) -> None:
        """End the server and its children at once (SIGKILL), as a power cut would."""
        if self._popen is None:
            return
        children = self.pause()
        self._popen.kill()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._popen.wait()
        self._popen = None
        eventually(lambda: all(map(has_ended, children)))

    def pause(self) -> list[int]:
        """Freeze the server: connections are accepted and never answered; return its children."""
        os.kill(self.pid, signal.SIGSTOP)  # first, so that it starts no further child
        children = descendants(self.pid)
        for child in children:
            os.kill(child, signal.SIGSTOP)
        return children

    def resume(self) -> None:
        """Let a paused server go on."""
        for pid in (*descendants(self.pid), self.pid):
            os.kill(pid, signal.SIGCONT)

    def remove(self) -> None:
        """End the server and delete its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _launch(self, command: list[str], answers: Callable[[], bool]) -> None:
        with (self.folder / "log").open("ab") as log:
            popen = subprocess.Popen(
                command,
                cwd=self.folder,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._popen = popen

        def is_up() -> bool:
            if popen.poll() is not None:
                self._popen = None
                raise RuntimeError(f"{command} ended with {popen.returncode}:\n{self.log()}")
            return answers()

        eventually(is_up, timeout=30)

    def _stop_with(self, number: signal.Signals) -> None:
        if self._popen is not None:
            self._popen.send_signal(number)
            self._popen.wait(30)
            self._popen = None


class Postgres(Server):
    """A private PostgreSQL; user postgres, no password, loopback only."""

    def __init__(self, *, durable: bool, parent: Path | None = None) -> None:
        """Create the cluster; without `durable` a power cut may lose it, a SIGKILL does not."""
        super().__init__("postgres", parent)
        self._programs = find_postgres()
        self._prefix = _unprivileged(self.folder)
        self._durable = durable
        subprocess.run(
            [
                *self._prefix,
                str(self._programs / "initdb"),
                *("--pgdata", str(self.folder / "data")),
                *("--username", "postgres", "--auth", "trust"),
                *("--encoding", "UTF8", "--no-locale", "--no-sync"),
            ],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            check=True,
            capture_output=True,
        )

    @property
    def url(self) -> str:
        """Where the database postgres is, as its superuser."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server, on the same port each time, and wait until it answers."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            # In its folder, which is deleted; elsewhere a SIGKILL would leave it behind.
            "dynamic_shared_memory_type": "mmap",
        }
        if not self._durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        options = [part for item in settings.items() for part in ("-c", "=".join(item))]
        server = [str(self._programs / "postgres"), "-D", str(self.folder / "data"), *options]
        self._launch([*self._prefix, *server], self._answers)

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server as `pg_ctl stop` does; immediate leaves recovery to the next start."""
        self._stop_with(_STOP_SIGNALS[mode])

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop the server in this mode and start it again."""
        self.stop(mode)
        self.start()

    def _answers(self) -> bool:
        try:
            psycopg2.connect(self.url, connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True


class Redis(Server):
    """A private Redis, configured as the service asks for it: noeviction."""

    def __init__(self, *, persistent: bool) -> None:
        """Choose a folder; with `persistent` every write reaches the disk before its answer."""
        super().__init__("redis")
        self._persistent = persistent

    @property
    def url(self) -> str:
        """Where database 0 is."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server, on the same port each time, and wait until it answers."""
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes" if self._persistent else "no",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
        }
        options = [part for name, value in settings.items() for part in (f"--{name}", value)]
        self._launch([*leash(), find_redis(), *options], self._answers)

    def stop(self) -> None:
        """Stop the server in good order."""
        self._stop_with(signal.SIGTERM)

    def restart(self) -> None:
        """Stop the server and start it again."""
        self.stop()
        self.start()

    def _answers(self) -> bool:
        try:
            with redis.Redis(port=self.port, socket_timeout=2) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


def start_postgres(*, durable: bool = False) -> Postgres:
    """Create and start a PostgreSQL; `durable` leaves fsync and full_page_writes on.

    Without, it lives in memory where there is plenty: to copy a template takes a sixth of the time.
    """
    server = Postgres(durable=durable, parent=None if durable else _memory())
    server.start()
    return server


def _memory() -> Path | None:
    folder = Path("/dev/shm")  # noqa: S108  # a folder of our own is made in it
    roomy = folder.is_mount() and shutil.disk_usage(folder).free >= _PLENTY
    return folder if roomy else None


def start_redis(*, persistent: bool = False) -> Redis:
    """Start a Redis; `persistent` keeps its data over `kill` and `restart`."""
    server = Redis(persistent=persistent)
    server.start()
    return server


def _postgres_version(folder: Path) -> int:
    said = subprocess.run([folder / "postgres", "--version"], capture_output=True, check=False)
    version = re.search(rb"\) (\d+)", said.stdout)
    return int(version[1]) if version else 0


def _unprivileged(folder: Path) -> list[str]:
    """Return the prefix of PostgreSQL's commands: it refuses to run as root."""
    if os.geteuid() != 0:
        return leash("QUIT")
    try:
        account = pwd.getpwnam("postgres")
    except KeyError:
        account = pwd.getpwnam("nobody")
    os.chown(folder, account.pw_uid, account.pw_gid)
    change = ["--reuid", str(account.pw_uid), "--regid", str(account.pw_gid), "--clear-groups"]
    return ["setpriv", "--pdeathsig", "QUIT", *change, "--"]


def free_port() -> int:
    """Return a port that nobody listens on, and that the kernel gives to no client."""
    for port in random.SystemRandom().sample(_PORTS, 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError(f"no free port among 100 of {_PORTS}")


def descendants(pid: int) -> list[int]:
    """Return the children of a process and theirs, where the kernel tells (Linux)."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid for child in map(int, children) for pid in (child, *descendants(child))]


def main(arguments: list[str]) -> None:
    """Print the packages that are missing or, with --explain, a line on each."""
    for package, find in {"postgresql": find_postgres, "redis-server": find_redis}.items():
        try:
            find()
        except MissingServerError as error:
            print(error if "--explain" in arguments else package)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
