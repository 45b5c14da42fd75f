"""Rows 24 to 26: the disk is full, and what SQLite has to bear."""

import os
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.faults.conftest import Case
from tests.faults.embedded import EmbeddedRig
from tests.faults.load import BROKEN
from tests.faults.rig import Rig
from tests.faults.trial import Trial

_AWAY = BROKEN | {"DEADLINE_EXCEEDED"}
#: Seconds after which a full disk takes nothing: the first small commits still find room on a page
#: and in the log's segment, which is written to its end.
_ROOM_SECONDS = 2.0


@pytest.mark.beside_others
@pytest.mark.row(24, "disk full: PostgreSQL")
@pytest.mark.timeout(200)
def test_postgres_on_a_full_disk(case: Case) -> None:
    """No OK while nothing can be written, none that is not stored, and work again with space."""
    with small_disk(case, megabytes=140) as disk:
        rig = Rig(durable=True, workers=1, disk=disk)
        try:
            rig.start()
            trial = Trial(rig, seed=case.seed)
            trial.load()
            time.sleep(1.5)
            with full(disk):
                began = time.monotonic()
                time.sleep(case.count(6, 30))
                ended = time.monotonic()
            freed = time.monotonic()
            if not rig.postgres.is_running:
                rig.postgres.start()
                case.note("PostgreSQL itself had ended and was started")
            time.sleep(5)
            history = trial.verdict()
            again = history.facts("ok", op="new", after=freed).entries[0].at - freed
            refused = {entry.code for entry in history.facts("unknown").entries}
            during = history.facts("unknown", after=began + _ROOM_SECONDS, before=ended)
            stored = history.facts("ok", op="new", after=began, before=ended)
            case.note(
                f"{len(during)} refused with {refused}, {len(stored)} OK while"
                f" full; first OK {again:.1f} s after space was free"
            )
            assert not stored.begun(after=began + _ROOM_SECONDS)
            assert during
            assert again <= 5
            assert refused <= _AWAY
            assert not rig.server.restarts
        finally:
            rig.close()


@pytest.mark.beside_others
@pytest.mark.row(24, "disk full: SQLite")
@pytest.mark.timeout(120)
def test_sqlite_on_a_full_disk(case: Case) -> None:
    """As PostgreSQL, in one process."""
    with small_disk(case, megabytes=8) as disk:
        rig = EmbeddedRig(data=disk / "data")
        try:
            trial = Trial(rig, seed=case.seed)
            trial.load()
            time.sleep(1)
            with full(disk):
                began = time.monotonic()
                time.sleep(case.count(6, 30))
                ended = time.monotonic()
            time.sleep(3)
            history = trial.verdict()
            unknown = history.facts("unknown", after=began + _ROOM_SECONDS, before=ended).entries
            stored = history.facts("ok", op="new", before=ended).begun(after=began + _ROOM_SECONDS)
            again = history.facts("ok", op="new", after=ended).entries[0].at - ended
            case.note(f"{len(unknown)} refused; first OK {again:.1f} s after space was free")
            assert not stored
            assert unknown
            assert again <= 5
            assert {entry.code for entry in unknown} <= _AWAY
            assert not rig.service.restarts
            assert rig.ledger.query("PRAGMA integrity_check") == [("ok",)]
        finally:
            rig.close()


@pytest.mark.beside_others
@pytest.mark.row(25, "SIGKILL during writes to SQLite")
@pytest.mark.timeout(1200)
def test_sqlite_survives_kills(case: Case, embedded: EmbeddedRig) -> None:
    """The file stays sound, and what was answered is in it."""
    trial = Trial(embedded, seed=case.seed)
    trial.load()
    for _ in range(case.count(4, 200)):
        time.sleep(case.random.uniform(0.2, 1.0))
        embedded.service.kill_and_wait()
    trial.verdict()

    case.note(f"{len(embedded.service.restarts)} kills")
    assert embedded.ledger.query("PRAGMA integrity_check") == [("ok",)]


@pytest.mark.row(26, "SQLite locked by another process")
@pytest.mark.timeout(120)
def test_a_locked_sqlite(case: Case, embedded: EmbeddedRig) -> None:
    """Whoever waits for the lock is answered in time; nothing hangs."""
    trial = Trial(embedded, seed=case.seed)
    # Streams last for a second by themselves, which would blur the times.
    trial.load(attempt_timeout=9.0, streams=0)
    time.sleep(1)
    with closing(sqlite3.connect(embedded.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        locked = time.monotonic()
        time.sleep(case.count(7, 10))
        other.execute("ROLLBACK")
    freed = time.monotonic()
    time.sleep(2)
    history = trial.verdict()

    # The group that found the lock is refused; who waited behind it may be in time for the end.
    refused = history.facts("unknown", after=locked, before=freed + 1).entries
    assert refused
    case.note(f"refused after {max(entry.ms for entry in refused):.0f} ms")
    assert {entry.code for entry in refused} <= _AWAY - {"DEADLINE_EXCEEDED"}
    assert max(entry.ms for entry in refused) <= 8_000


@pytest.fixture(scope="module")
def embedded() -> Iterator[EmbeddedRig]:
    """An embedded service for two rows."""
    rig = EmbeddedRig()
    yield rig
    rig.close()


@contextmanager
def small_disk(case: Case, *, megabytes: int) -> Iterator[Path]:
    """Mount a small file system of its own; without the right to do so the row cannot run."""
    if os.geteuid() != 0:
        case.cannot("needs root to mount a small tmpfs")
    with tempfile.TemporaryDirectory(prefix="ingest-disk-") as folder:
        # Whoever PostgreSQL runs as must get there.
        disk = Path(folder)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", disk],
            capture_output=True,
            text=True,
            check=False,
        )
        if mounted.returncode:
            case.cannot(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
        try:
            yield disk
        finally:
            subprocess.run(["umount", "--lazy", disk], check=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Leave no block free, and take whatever others give back, as a neighbour that grows does."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 4_096):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
    ended = threading.Event()

    def refill() -> None:
        with filler.open("ab", buffering=0) as file:
            while not ended.wait(0.002):
                with suppress(OSError):
                    while True:
                        file.write(b"x" * 4_096)

    refiller = threading.Thread(target=refill, name="filler", daemon=True)
    refiller.start()
    try:
        yield
    finally:
        ended.set()
        refiller.join()
        filler.unlink()
