"""The bare claim and stamp: the worker's two statements, without Dramatiq, JSON and pipeline."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

from sqlalchemy import Engine

from benchmarks import fill
from benchmarks.sample import Sample
from benchmarks.stack import Bench
from eventstore.engine import build_engine

#: Written out here and not taken from the product, so that the limit does not move with it.
_CLAIM = """
SELECT user_id::text, id::text, type, payload::text FROM events
WHERE user_id = %s::uuid AND id = ANY (%s::uuid[]) AND status < 2 FOR UPDATE SKIP LOCKED
"""
_STAMP = """
UPDATE events e
SET status = 2, properties = done.properties::jsonb, processed_at = statement_timestamp()
FROM unnest(%s::uuid[], %s::text[]) AS done (id, properties)
WHERE e.user_id = %s::uuid AND e.id = ANY (%s::uuid[]) AND e.id = done.id
"""

#: As many bytes as the pipeline writes for a small event.
_PROPERTIES = (
    '{"normalized_at":"2024-02-29T12:00:00.123456Z","page":"/pricing","referrer":'
    '"https://example.org/123456","duration":123.4,"scroll_depth":55,"user":{"id":'
    f'"{fill.USER}","email":"filled@example.org"}}}}'
)


def stamp_rate(bench: Bench, *, rows: int, group: int, threads: int = 4) -> Sample:
    """Return rows/s of claim, stamp and commit, in as many threads as a worker process has."""
    rows = bench.size(rows, rows // 2)
    with bench.database() as database:
        fill.fill(database, rows, pending=True)
        fill.settle(database)
        ids = fill.keys(database)
        groups = [ids[start : start + group] for start in range(0, rows, group)]
        shares = [groups[number::threads] for number in range(threads)]
        # Only for the connection settings; what runs is a plain psycopg2 cursor.
        engine = build_engine(database.url, name="bench", pool_size=threads, keyed=True)
        started = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(partial(_stamp, engine), shares))
        seconds = time.perf_counter() - started
        engine.dispose()
        return Sample(value=rows / seconds, faults=database.faults(rows, processed=True))


def _stamp(engine: Engine, groups: Sequence[Sequence[str]]) -> None:
    with closing(engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
        for ids in groups:
            array = "{" + ",".join(ids) + "}"
            cursor.execute(_CLAIM, (fill.USER, array))
            properties = [_PROPERTIES] * len(cursor.fetchall())
            cursor.execute(_STAMP, (array, properties, fill.USER, array))
            connection.commit()
