"""What a server holds at the end of all hostile tests, beside what it held before them."""

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psycopg2

from tests.hostile.vitals import threads
from tests.kit.caller import Caller, event
from tests.kit.server import Service, running
from tests.kit.waiting import eventually

INJECT = Path(__file__).parents[1] / "faults" / "inject"
#: Bytes of anonymous memory that all tests together may leave behind, whatever they sent; measured
#: were 42 MiB with PostgreSQL and 31 with SQLite, after 17 minutes.
MORE_BYTES = 64 << 20
#: Threads that a rare need starts, and that then stay: gRPC's own pool grows by what it meets.
MORE_THREADS = 4
#: Calls of a kind that are made at once to have everything there that stays.
_AT_ONCE = 16
#: Large answers at once: what one user may hold.
_READERS = 4
#: Coroutines of gRPC in which a call is answered.
_OF_CALLS = frozenset({"_handle_exceptions", "_schedule_rpc_coro"})
#: Connections of a server that has had use for all: two that write, four that read, one that asks
#: for its health.
_SESSIONS = 7
#: Open files of SQLite, where one writes: two for each connection, and an index that they share.
_FILES = 2 * 6 + 1
#: Seconds in which what ends by itself must have ended.
_PATIENCE = 20


class Held(NamedTuple):
    """What a server holds at one moment."""

    #: Anonymous: neither code nor the pages of a database's file.
    bytes: int
    threads: int
    #: Of clients, of the broker and of PostgreSQL.
    sockets: int
    #: Sessions in PostgreSQL, or open files of SQLite.
    database: int
    #: How many of each coroutine.
    tasks: Mapping[str, int]

    def beyond(self, before: "Held") -> list[str]:
        """Return what is more than it was before, beyond what may be left behind."""
        more = []
        if self.bytes - before.bytes > MORE_BYTES:
            more.append(f"memory: {before.bytes >> 20} MiB, then {self.bytes >> 20} MiB")
        if self.threads - before.threads > MORE_THREADS:
            more.append(f"threads: {before.threads}, then {self.threads}")
        if self.sockets > before.sockets:
            more.append(f"sockets: {before.sockets}, then {self.sockets}")
        if self.database > before.database:
            more.append(f"database: {before.database}, then {self.database}")
        if tasks := Counter(self.tasks) - Counter(before.tasks):
            more.append(f"tasks: {dict(tasks)} more")
        return more


@contextmanager
def observed(folder: Path, env: Mapping[str, str], *plants: str) -> Iterator[Service]:
    """Run a server that tells its tasks, and that has these plants."""
    folder.mkdir(parents=True, exist_ok=True)
    told = " ".join((f"tell-tasks={folder / 'tasks.json'}", *plants))
    with running(folder, {**env, "PYTHONPATH": str(INJECT), "FAULTS_PLANT": told}) as service:
        yield service


def look(service: Service) -> Held:
    """Return what an observed server holds now."""
    tasks = _tasks(service)  # first, because it gives back what is free
    folder = Path(f"/proc/{service.process.pid}")
    status = (folder / "status").read_text(encoding="ascii")
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found
    files = []
    for descriptor in (folder / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            files.append(str(descriptor.readlink()))
    return Held(
        bytes=int(found[1]) << 10,
        threads=threads(service),
        sockets=sum(file.startswith("socket:") for file in files),
        database=_sessions(service.database_url, files),
        tasks=tasks,
    )


def _sessions(url: str, files: list[str]) -> int:
    if url.startswith("sqlite:///"):
        return sum(file.startswith(url.removeprefix("sqlite:///")) for file in files)
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND backend_type = 'client backend'"
            " AND pid <> pg_backend_pid()"
        )
        row = cursor.fetchone()
    assert row
    return int(row[0])


def _tasks(service: Service) -> dict[str, int]:
    plant = service.env["FAULTS_PLANT"].split()[0]
    file = Path(plant.partition("=")[2])
    file.unlink(missing_ok=True)
    os.kill(service.process.pid, signal.SIGUSR1)
    eventually(file.exists)
    told: dict[str, int] = json.loads(file.read_text(encoding="utf-8"))
    return told


def exercise(service: Service) -> None:
    """Make calls of each kind at once, so that all threads, connections and caches are there."""
    owner = service.caller()
    large = owner.submit(event(payload="x" * 3_900_000)).event_id
    with ThreadPoolExecutor(_READERS) as pool:
        for read in [pool.submit(owner.get, large) for _ in range(2 * _READERS)]:
            read.result()

    def call(caller: Caller) -> None:
        caller.batch(event(payload="x" * 1_000) for _ in range(50))
        caller.stream([[event(payload="x" * 1_000)] * 50])
        caller.list()

    callers = [service.caller() for _ in range(_AT_ONCE)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for made in [pool.submit(call, caller) for caller in callers]:
            made.result()


def _exercised(service: Service) -> Held | None:
    """Return what is held once all is there and no call is under way, or None.

    On a busy machine fewer of the reading threads may have met than there are.
    """
    exercise(service)
    held = look(service)
    sqlite = service.database_url.startswith("sqlite")
    complete = held.database == (_FILES if sqlite else _SESSIONS)
    return held if complete and not _OF_CALLS & held.tasks.keys() else None


@contextmanager
def back_to_baseline(service: Service, patience: float = _PATIENCE) -> Iterator[None]:
    """Have an observed server hold in the end what it held at first, as far as `Held` counts."""
    before = eventually(lambda: _exercised(service), timeout=_PATIENCE)
    assert before
    yield
    assert service.process.returncode is None, service.process.output()
    exercise(service)

    def is_back() -> bool:
        more = look(service).beyond(before)
        assert not more, "; ".join(more)
        return True

    eventually(is_back, timeout=patience, interval=0.5)
