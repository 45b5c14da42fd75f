"""Rows in bulk, made inside PostgreSQL: small events of one user, pending or processed."""

from benchmarks.database import Database

#: The user of the rows that are made here.
USER = "7a1c5d0e-0000-5000-8000-0000000000aa"

#: Rows of one statement.
_CHUNK = 1_000_000

_USER = """
INSERT INTO users (id, issuer, subject, email, first_seen_at, last_seen_at)
VALUES (%s, 'ingest', 'filled', 'filled@example.org', now(), now())
ON CONFLICT DO NOTHING
"""

# UUIDs of version 7, fifty a millisecond, the last one made now: all of them are of today, as long
# as it is not just past midnight UTC.
_EVENTS = """
INSERT INTO events (user_id, id, status, received_at, occurred_at, next_attempt_at, processed_at,
                    type, source, subject, payload, properties)
SELECT %(user)s,
       (lpad(to_hex(ms), 12, '0') || '7' || lpad(to_hex(n %% 50), 3, '0') || '8'
        || substr(md5(n::text || random()), 1, 15))::uuid,
       %(status)s, at, at, now() + %(due)s * interval '1 second',
       CASE %(status)s WHEN 1 THEN NULL ELSE at END,
       'page.viewed', 'web', '',
       jsonb_build_object('page', '/pricing', 'duration', (n %% 3000) / 10.0,
                          'scroll_depth', n %% 101,
                          'referrer', 'https://example.org/' || (n %% 1000000)),
       CASE %(status)s WHEN 1 THEN NULL ELSE jsonb_build_object(
         'normalized_at', at, 'page', '/pricing', 'duration', (n %% 3000) / 10.0,
         'scroll_depth', n %% 101, 'referrer', 'https://example.org/' || (n %% 1000000),
         'user', jsonb_build_object('id', %(user)s, 'email', 'filled@example.org')) END
FROM (SELECT n, now_ms - (%(later)s + %(count)s - n) / 50 AS ms,
             to_timestamp((now_ms - (%(later)s + %(count)s - n) / 50) / 1000.0) AS at
      FROM generate_series(1, %(count)s) AS n,
           (SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms) AS clock
     ) AS made
"""


def fill(
    database: Database, count: int, *, pending: bool, user: str = USER, due_seconds: int = 3_600
) -> None:
    """Add `count` events of `user`; a sweeper takes the pending ones in `due_seconds`."""
    database.query(_USER, (user,))
    for start in range(0, count, _CHUNK):
        part = min(_CHUNK, count - start)
        values = {
            "user": user,
            "count": part,
            "later": count - start - part,
            "status": 1 if pending else 2,
            "due": due_seconds,
        }
        database.query(_EVENTS, values)


def fill_keys(database: Database, count: int, *, user: str) -> None:
    """Add `count` idempotency keys of `user`, whose events are gone, as retention leaves them."""
    database.query(
        "INSERT INTO idempotency_keys SELECT %s, 'filled ' || n, gen_random_uuid(),"
        " sha256(n::text::bytea), now() FROM generate_series(1, %s) AS n",
        (user, count),
    )


def settle(database: Database) -> None:
    """Do what autovacuum would have done by the time a table has grown so large."""
    database.query("VACUUM ANALYZE events")
    database.settle()


def keys(database: Database, user: str = USER) -> list[str]:
    """Return the ids of the user's events, oldest first."""
    rows = database.query("SELECT id::text FROM events WHERE user_id = %s ORDER BY id", (user,))
    return [row[0] for row in rows]
