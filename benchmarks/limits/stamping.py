"""The bare read and stamp: the worker's two statements, without Dramatiq, JSON and pipeline."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

from sqlalchemy import Engine

from benchmarks import fill
from benchmarks.figures.working import rate
from benchmarks.sample import Sample
from benchmarks.stack import Bench
from eventstore.engine import build_engine

# Both are written out here and not taken from the product, so that the limit does not move with it;
# they have the form that the product found fastest: keys and their range, no join to find a row, no
# lock, planned once for each connection.
_PREPARE = """
PREPARE bench_read (uuid[], uuid[], uuid, uuid) AS
SELECT e.user_id::text, e.id::text, e.type, e.payload::text, e.attempts,
       (SELECT u.email FROM users u WHERE u.id = e.user_id)
FROM events e
WHERE e.user_id = ANY ($1) AND e.id = ANY ($2) AND e.id BETWEEN $3 AND $4
  AND e.status < 2 AND e.attempts = 0 AND e.lease_token IS NULL;

PREPARE bench_stamp (uuid[], uuid[], uuid, uuid, jsonb) AS
UPDATE events e
SET status = 2, properties = r.properties, processed_at = statement_timestamp()
FROM ROWS FROM (unnest($2), jsonb_array_elements($5)) AS r (id, properties)
WHERE e.user_id = ANY ($1) AND e.id = ANY ($2) AND e.id BETWEEN $3 AND $4 AND e.id = r.id
  AND e.status < 2 AND e.lease_token IS NULL
"""
_READ = "EXECUTE bench_read (%s, %s, %s, %s)"
_STAMP = "EXECUTE bench_stamp (%s, %s, %s, %s, %s)"

#: As many bytes as the pipeline writes for a small event.
_PROPERTIES = (
    '{"normalized_at":"2024-02-29T12:00:00.123456Z","page":"/pricing","referrer":'
    '"https://example.org/123456","duration":123.4,"scroll_depth":55,"user":{"id":'
    f'"{fill.USER}","email":"filled@example.org"}}}}'
)


def stamp_rate(bench: Bench, *, rows: int, group: int, threads: int = 4) -> Sample:
    """Return rows/s of read, stamp and commit, in as many threads as a worker process has.

    The rate is told as the worker's is: by the rows' own times, once the first tenth is done.
    """
    rows = bench.size(rows, rows // 2)
    with bench.database() as database:
        fill.fill(database, rows, pending=True)
        fill.settle(database)
        ids = fill.keys(database)
        groups = [ids[start : start + group] for start in range(0, rows, group)]
        lookups = [_lookup(part) for part in groups]
        shares = [lookups[number::threads] for number in range(threads)]
        # Only for the connection settings; what runs is a plain psycopg2 cursor.
        engine = build_engine(database.url, name="bench", pool_size=threads, keyed=True)
        properties = "[" + ",".join([_PROPERTIES] * group) + "]"
        meter, own = bench.cpu(), time.process_time()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(partial(_stamp, engine, properties), shares))
        own, cpu = time.process_time() - own, meter.stop()
        engine.dispose()
        return Sample(
            value=rate(database),
            detail={
                "cpu_threads_s_per_million": round(own / rows * 1e6, 1),
                "cpu_postgres_s_per_million": round(cpu["postgres"] / rows * 1e6, 1),
            },
            faults=database.faults(rows, processed=True),
        )


def _lookup(ids: Sequence[str]) -> tuple[str, str, str, str]:
    return ("{" + fill.USER + "}", "{" + ",".join(ids) + "}", ids[0], ids[-1])


def _stamp(engine: Engine, properties: str, lookups: Sequence[tuple[str, ...]]) -> None:
    with closing(engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(_PREPARE)
        connection.commit()
        for lookup in lookups:
            cursor.execute(_READ, lookup)
            cursor.fetchall()
            cursor.execute(_STAMP, (*lookup, properties))
            connection.commit()
