"""Bare executemany and COMMIT into the product's own SQLite table, with its durability."""

import sqlite3
import tempfile
import time
import uuid
from contextlib import closing
from pathlib import Path

from benchmarks.corpus import Corpus
from benchmarks.ids import event_id
from benchmarks.sample import Sample, latency_detail
from benchmarks.stack import Bench
from eventstore import migrations

_INSERT = (
    "INSERT INTO events (user_id, id, received_at, occurred_at, next_attempt_at, type, source,"
    " subject, payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def insert_rate(bench: Bench, corpus: Corpus, *, rows: int, group: int) -> Sample:
    """Return rows/s, with the values made beforehand; a tenth more comes first, uncounted."""
    warm = rows // 10
    file = Path(tempfile.mkdtemp(prefix="sqlite-", dir=bench.folder), "events.db")
    migrations.upgrade(f"sqlite:///{file}")
    user, now = uuid.uuid4().hex, time.time_ns() // 1000
    values = [
        (user, event_id().replace("-", ""), now, now, now, e.type, e.source, "", e.payload_json)
        for e in corpus.cycle(warm + rows)
    ]
    seconds = []
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        for start in range(0, warm + rows, group):
            before = time.perf_counter()
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_INSERT, values[start : start + group])
            connection.execute("COMMIT")
            seconds.append(time.perf_counter() - before)
        (stored,) = connection.execute("SELECT count(*) FROM events").fetchone()
    counted = seconds[warm // group :]
    return Sample(
        value=rows / sum(counted),
        detail=latency_detail(counted, "group"),
        faults=() if stored == warm + rows else (f"sent {warm + rows}, stored {stored}",),
    )
