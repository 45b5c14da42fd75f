"""Retention in SQLite: looks for what is old while others write, and deletes it by its key.

One transaction writes at a time, and whoever submits waits for it: it must be short, and there must
be none where nothing is old.
"""

from datetime import datetime

from sqlalchemy import Connection, Engine, TextClause, select, text

from eventstore.clock import in_seconds
from eventstore.engine import reading
from eventstore.reading import first_id_of
from eventstore.schema import microseconds
from eventstore.values import MOST_AHEAD_MS

#: Most rows that one transaction deletes, so that it stays short.
DELETE_ROWS = 10_000
_DAY = 86_400.0

# By user and id, which is in the order of receipt: all rows are many, and those before an id few.
_OLD_EVENTS = text("""
SELECT json_group_array(json_array(user_id, id)) FROM (
  SELECT user_id, id FROM events
  WHERE user_id IN (SELECT id FROM users) AND id < :before AND received_at < :old AND status <> 1
  LIMIT :most)
""")
_DROP = text("""
DELETE FROM events
WHERE (user_id, id) IN (
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:keys))
  AND received_at < :old AND status <> 1
""")
_OLD_KEYS = text("""
SELECT json_group_array(json_array(user_id, key)) FROM (
  SELECT user_id, key FROM idempotency_keys WHERE received_at < :old LIMIT :most)
""")
_FORGET = text("""
DELETE FROM idempotency_keys
WHERE (user_id, key) IN (
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:keys))
  AND received_at < :old
""")


def drop_old_events(engine: Engine, *, days: int) -> int:
    """Delete final events older than `days`, at most DELETE_ROWS; returns how many."""
    with reading(engine) as connection:
        old = _days_ago(connection, days)
        # As SQLAlchemy's Uuid stores it in SQLite.
        before = first_id_of(old, after=MOST_AHEAD_MS + 1).replace("-", "")
        bounds = {"before": before, "old": microseconds(old), "most": DELETE_ROWS}
        keys = connection.execute(_OLD_EVENTS, bounds).scalar_one()
    return _delete(engine, _DROP, keys, old)


def forget_old_keys(engine: Engine, *, days: int) -> int:
    """Delete idempotency keys older than `days`, at most DELETE_ROWS; returns how many."""
    with reading(engine) as connection:
        old = _days_ago(connection, days)
        bounds = {"old": microseconds(old), "most": DELETE_ROWS}
        keys = connection.execute(_OLD_KEYS, bounds).scalar_one()
    return _delete(engine, _FORGET, keys, old)


def _days_ago(connection: Connection, days: int) -> datetime:
    return connection.execute(select(in_seconds(-days * _DAY))).scalar_one()


def _delete(engine: Engine, statement: TextClause, keys: str, old: datetime) -> int:
    """Delete what has these keys, a JSON array of pairs, and is old, and final, still."""
    if keys == "[]":
        return 0
    with engine.begin() as connection:
        return connection.execute(statement, {"keys": keys, "old": microseconds(old)}).rowcount
