"""Raw COPY through psycopg2 into the product's own table, and one plain INSERT with its commit."""

import io
import time
import uuid
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime

import psycopg2

from benchmarks.corpus import Corpus
from benchmarks.database import Database
from benchmarks.ids import event_id
from benchmarks.sample import Sample, latency_detail
from benchmarks.stack import Bench

_COLUMNS = "user_id, id, received_at, occurred_at, next_attempt_at, type, source, subject, payload"
_COPY = f"COPY events ({_COLUMNS}) FROM STDIN"
_INSERT = f"INSERT INTO events ({_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"  # noqa: S608  # our own
#: As the product has it: the buffer is handed over in one piece.
_PIECE = 1 << 20


def copy_rate(bench: Bench, corpus: Corpus, *, rows: int, group: int) -> Sample:
    """Return rows/s of COPY and COMMIT, with the text of the rows made beforehand."""
    groups = [
        _text(corpus, min(group, rows - start), first=start) for start in range(0, rows, group)
    ]
    with bench.database() as database:
        seconds = _timed(database, groups)
        return Sample(
            value=rows / sum(seconds),
            detail=latency_detail(seconds, "group"),
            faults=database.faults(rows, processed=False),
        )


def insert_latency(bench: Bench, corpus: Corpus, *, rows: int) -> Sample:
    """Return the mean milliseconds of a one-row INSERT that commits itself."""
    user, now = str(uuid.uuid4()), datetime.now(UTC)
    events = list(corpus.cycle(rows))
    with bench.database() as database, closing(psycopg2.connect(database.url)) as connection:
        connection.autocommit = True
        seconds = []
        with connection.cursor() as cursor:
            for event in events:
                key = event_id()
                row = (user, key, now, now, now, event.type, event.source, "", event.payload_json)
                before = time.perf_counter()
                cursor.execute(_INSERT, row)
                seconds.append(time.perf_counter() - before)
        return Sample(
            value=sum(seconds) / rows * 1e3,
            detail=latency_detail(seconds, "insert"),
            faults=database.faults(rows, processed=False),
        )


def _timed(database: Database, groups: Sequence[bytes]) -> list[float]:
    seconds = []
    with closing(psycopg2.connect(database.url)) as connection, connection.cursor() as cursor:
        for text in groups:
            before = time.perf_counter()
            cursor.copy_expert(_COPY, io.BytesIO(text), _PIECE)
            connection.commit()
            seconds.append(time.perf_counter() - before)
    return seconds


def _text(corpus: Corpus, rows: int, *, first: int) -> bytes:
    user, now = _USER, str(datetime.now(UTC))
    events = corpus.events
    return b"".join(
        "\t".join(
            (user, event_id(), now, now, now, event.type, event.source, "",
             event.payload_json.replace("\\", "\\\\"))
        ).encode() + b"\n"
        for event in (events[(first + i) % len(events)] for i in range(rows))
    )  # fmt: skip


_USER = str(uuid.uuid4())
