"""A database of the bench, and what it tells about the rows in it."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg2

_PROCESSED = 2
_FINAL = """
SELECT count(*) FROM events
WHERE status = 2 AND processed_at IS NOT NULL AND properties IS NOT NULL
  AND lease_token IS NULL AND processing_error IS NULL
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """PostgreSQL's own counters at one moment, both exact at once."""

    wal_bytes: int
    #: Transactions that wrote something.
    transactions: int


class Database:
    """One migrated database on the bench's own PostgreSQL."""

    def __init__(self, url: str) -> None:
        """Take its address."""
        self.url = url

    def query(
        self, statement: str, values: Sequence[object] | Mapping[str, object] = ()
    ) -> list[Any]:
        """Run one statement in a transaction of its own and return its rows."""
        with closing(psycopg2.connect(self.url)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement, values or None)
                return cursor.fetchall() if cursor.description else []

    def set(self, name: str, value: str) -> None:
        """Change a setting of all sessions that begin from now on."""
        database = self.query("SELECT current_database()")[0][0]
        self.query(f"ALTER DATABASE {database} SET {name} = '{value}'")

    def settle(self) -> None:
        """Write out dirty pages, so that no run pays for the one before."""
        self.query("CHECKPOINT")

    def rows(self) -> int:
        """Count the events."""
        return int(self.query("SELECT count(*) FROM events")[0][0])

    def pending(self) -> int:
        """Count the events that are not final."""
        return int(self.query("SELECT count(*) FROM events WHERE status = 1")[0][0])

    def any_pending(self) -> bool:
        """Whether an event is not final, at the cost of one row."""
        return bool(self.query("SELECT EXISTS (SELECT FROM events WHERE status = 1)")[0][0])

    def counters(self) -> Counters:
        """Read the counters.

        Transaction ids count what pg_stat_database would tell of only seconds later, when the
        sessions that wrote have reported it.
        """
        wal, transactions = self.query(
            "SELECT pg_current_wal_insert_lsn() - '0/0',"
            " pg_snapshot_xmax(pg_current_snapshot())::text"
        )[0]
        return Counters(wal_bytes=int(wal), transactions=int(transactions))

    def disk_bytes(self) -> int:
        """Return the size of all event partitions and of the keys, with indexes and TOAST."""
        total = self.query(
            "SELECT sum(pg_total_relation_size(inhrelid))"
            " + pg_total_relation_size('idempotency_keys')"
            " FROM pg_inherits WHERE inhparent = 'events'::regclass"
        )
        return int(total[0][0])

    def now(self) -> datetime:
        """Return the database's time."""
        moment: datetime = self.query("SELECT clock_timestamp()")[0][0]
        return moment

    def accept_to_processed(self, since: datetime) -> list[float]:
        """Return seconds from received_at to processed_at of the events received since then."""
        rows = self.query(
            "SELECT extract(epoch FROM processed_at - received_at)::float8 FROM events"
            " WHERE status = %s AND received_at >= %s",
            (_PROCESSED, since),
        )
        return [row[0] for row in rows]

    def processing_seconds(self, since: datetime) -> float:
        """Return seconds from the first event received since then to the last one processed."""
        seconds = self.query(
            "SELECT extract(epoch FROM max(processed_at) - min(received_at))::float8"
            " FROM events WHERE received_at >= %s",
            (since,),
        )
        return float(seconds[0][0])

    def faults(self, acknowledged: int, *, processed: bool) -> tuple[str, ...]:
        """Compare the rows with what was acknowledged; one text for each thing that is wrong."""
        rows = self.rows()
        found = []
        if rows < acknowledged:
            found.append(f"lost or refused: {acknowledged - rows}")
        if rows > acknowledged:
            found.append(f"doubled: {rows - acknowledged}")
        if processed:
            final = self.query(_FINAL)[0][0]
            if final != rows:
                found.append(f"stuck: {rows - final}")
        return tuple(found)
