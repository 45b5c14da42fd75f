"""The statements of a reader; every one names the user, so no one reads another's events."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, TextClause, bindparam, func, select, text
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from eventstore.content import load_page, selection, stored_bytes, stored_event
from eventstore.schema import events, idempotency_keys, users
from eventstore.values import MOST_AHEAD_MS, EventStatus, StoredEvent

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: UUID version 7 holds the time in 48 bits.
_MAX_MILLISECONDS = (1 << 48) - 1

#: Rows that one page looks at, whatever the filters leave of them: the page's cost is bounded.
SCAN_ROWS = 10_000
#: Newest events over which the final statuses are counted.
COUNT_ROWS = 100_000

#: The largest UUID: a cursor before the newest event.
NEWEST = "ffffffff-ffff-ffff-ffff-ffffffffffff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which events of a user are wanted; None and empty texts mean all."""

    status: EventStatus | None = None
    type: str = ""
    source: str = ""
    received_after: datetime | None = None
    received_before: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some events, newest first."""

    events: Sequence[StoredEvent]
    #: The id after which the next page starts; None on the last page.
    cursor: str | None


def get_event(
    connection: Connection, user_id: str, event_id: str, *, content: bool
) -> StoredEvent | None:
    """Return one event of the user, or None; without `content` neither payload nor properties."""
    statement = (
        selection(content=content)
        .join(users, users.c.id == events.c.user_id)
        .where(events.c.user_id == user_id, events.c.id == event_id)
    )
    row = connection.execute(statement).one_or_none()
    return None if row is None else stored_event(row)


def find_event_id(connection: Connection, user_id: str, idempotency_key: str) -> str | None:
    """Return the id of the event that the user submitted under this key, or None."""
    table = idempotency_keys
    statement = select(table.c.event_id).where(
        table.c.user_id == user_id, table.c.key == idempotency_key
    )
    return connection.execute(statement).scalar_one_or_none()


def list_events(
    connection: Connection,
    user_id: str,
    filters: Filters,
    *,
    limit: int,
    before: str,
    content: bool,
) -> Page:
    """Return the newest events older than the id `before`.

    The page looks at no more than SCAN_ROWS rows, so it may hold fewer than `limit` events, even
    none, and still have a cursor.
    """
    window = (events.c.user_id == user_id, events.c.id < before, *_window(filters))
    scanned = (
        select(
            events.c.id,
            events.c.status,
            events.c.type,
            events.c.source,
            stored_bytes(connection, content=content).label("stored"),
        )
        .where(*window)
        .order_by(events.c.id.desc())
        .limit(SCAN_ROWS)
        .subquery()
    )
    conditions = _conditions(filters, scanned.c)
    matching = (
        select(scanned.c.id, scanned.c.stored)
        .where(*conditions)
        .order_by(scanned.c.id.desc())
        .limit(limit + 1)
    )
    found = connection.execute(matching).tuples().all()
    page = load_page(connection, user_id, found[:limit], content=content)
    if page and len(page) < len(found):
        # More events match, or the content of these fills a page.
        return Page(events=page, cursor=page[-1].key.id)
    if not conditions:
        return Page(events=page, cursor=None)
    last_scanned = (
        select(events.c.id)
        .where(*window)
        .order_by(events.c.id.desc())
        .offset(SCAN_ROWS - 1)
        .limit(1)
    )
    return Page(events=page, cursor=connection.execute(last_scanned).scalar_one_or_none())


def count_events(
    connection: Connection, user_id: str, filters: Filters
) -> tuple[dict[EventStatus, int], bool]:
    """Count the user's events by status, and say whether the final ones are cut off.

    PENDING is exact; the final statuses are counted over the newest COUNT_ROWS events.
    """
    window = (events.c.user_id == user_id, *_window(filters))
    newest = (
        select(events.c.status)
        .where(*window)
        .order_by(events.c.id.desc())
        .limit(COUNT_ROWS)
        .subquery()
    )
    counts = dict.fromkeys(EventStatus, 0)
    counted = select(newest.c.status, func.count()).group_by(newest.c.status)
    for status, count in connection.execute(counted):
        counts[EventStatus(status)] = count
    truncated = sum(counts.values()) == COUNT_ROWS
    if truncated:
        pending = select(func.count()).where(
            _owned_by(connection, user_id), *_window(filters), events.c.status == text("1")
        )
        counts[EventStatus.PENDING] = connection.execute(pending).scalar_one()
    return counts, truncated


def _owned_by(connection: Connection, user_id: str) -> ColumnElement[bool] | TextClause:
    """Name the user so that SQLite, which knows no numbers, takes the index of PENDING rows.

    Otherwise it reads all rows of the user. PostgreSQL has statistics, and is left to choose:
    PENDING rows of others may be many.
    """
    if connection.dialect.name != "sqlite":
        return events.c.user_id == user_id
    # A `+` keeps the column from being looked up in an index.
    owned = text("+user_id = :owner")
    return owned.bindparams(bindparam("owner", user_id, events.c.user_id.type))


def users_with_pending(connection: Connection, *, at_least: int) -> frozenset[str]:
    """Return the users with so many PENDING events or more; takes a second for a million."""
    # In the order of the index of PENDING rows, or PostgreSQL may walk through all rows by user.
    pending = (
        select(events.c.user_id)
        .where(events.c.status == text("1"))
        .order_by(events.c.next_attempt_at)
        .subquery()
    )
    counted = select(pending.c.user_id).group_by(pending.c.user_id).having(func.count() >= at_least)
    return frozenset(connection.execute(counted).scalars())


def _window(filters: Filters) -> list[ColumnElement[bool]]:
    """Bound the time of receipt, and with it the id, which chooses the partitions."""
    bounds: list[ColumnElement[bool]] = []
    if filters.received_after is not None:
        bounds += [
            events.c.id >= first_id_of(filters.received_after),
            events.c.received_at >= filters.received_after,
        ]
    if filters.received_before is not None:
        bounds += [
            events.c.id < first_id_of(filters.received_before, after=MOST_AHEAD_MS + 1),
            events.c.received_at < filters.received_before,
        ]
    return bounds


def first_id_of(moment: datetime, *, after: int = 0) -> str:
    """Return the smallest UUID version 7 of the millisecond of `moment`, or of some after it."""
    milliseconds = max(0, (moment - _EPOCH) // timedelta(milliseconds=1) + after)
    return str(UUID(int=min(milliseconds, _MAX_MILLISECONDS) << 80))


def _conditions(
    filters: Filters, columns: ReadOnlyColumnCollection[str, Any]
) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if filters.status is not None:
        conditions.append(columns.status == int(filters.status))
    if filters.type:
        conditions.append(columns.type == filters.type)
    if filters.source:
        conditions.append(columns.source == filters.source)
    return conditions
