"""Raw COPY through psycopg2 into the product's own table, and one plain INSERT with its commit."""

import io
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from typing import Any

import psycopg2

from benchmarks.corpus import Corpus
from benchmarks.ids import event_id
from benchmarks.sample import Sample, latency_detail
from benchmarks.stack import Bench

_COLUMNS = "user_id, id, received_at, occurred_at, next_attempt_at, type, source, subject, payload"
_COPY = f"COPY events ({_COLUMNS}) FROM STDIN"
_INSERT = f"INSERT INTO events ({_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"  # noqa: S608  # our own
#: As the product has it: the buffer is handed over in one piece.
_PIECE = 1 << 20


def copy_rate(
    bench: Bench, corpus: Corpus, *, rows: int, group: int, connections: int = 1
) -> Sample:
    """Return rows/s of COPY and COMMIT, with the text of the rows made beforehand.

    As for the service, a tenth more comes first and is not counted.
    """
    warm = rows // 10 // group * group
    groups = [_text(corpus, group, first=start) for start in range(0, warm + rows, group)]
    with bench.database() as database, ExitStack() as stack:
        opened = [
            stack.enter_context(closing(psycopg2.connect(database.url))) for _ in range(connections)
        ]
        pool = stack.enter_context(ThreadPoolExecutor(connections))

        def copy(first: int, end: int) -> list[float]:
            shares = [groups[first + number : end : connections] for number in range(connections)]
            return [second for part in pool.map(_timed, opened, shares) for second in part]

        copy(0, warm // group)
        begun = time.perf_counter()
        seconds = copy(warm // group, len(groups))
        took = time.perf_counter() - begun
        return Sample(
            value=rows / took,
            detail=latency_detail(seconds, "group"),
            faults=database.faults(warm + rows, processed=False),
        )


def insert_latency(bench: Bench, corpus: Corpus, *, rows: int) -> Sample:
    """Return the mean milliseconds of a one-row INSERT that commits itself."""
    user, now = str(uuid.uuid4()), datetime.now(UTC)
    warm = rows // 10
    events = list(corpus.cycle(warm + rows))
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
            value=sum(seconds[warm:]) / rows * 1e3,
            detail=latency_detail(seconds[warm:], "insert"),
            faults=database.faults(warm + rows, processed=False),
        )


def _timed(connection: Any, groups: Sequence[bytes]) -> list[float]:
    seconds = []
    with connection.cursor() as cursor:
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
