"""Events with their content, and no more of it than an answer has room for."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Integer,
    Row,
    Select,
    Text,
    case,
    cast,
    func,
    literal,
    literal_column,
    null,
    select,
)

from eventstore.schema import events, users
from eventstore.values import EventKey, EventStatus, StoredEvent

#: What one page may carry: in bytes at most four times as much, and clients take 4 MiB. The first
#: event always comes.
PAGE_CHARACTERS = 1_000_000
#: Bytes, as PostgreSQL keeps them, of the events that are measured in one step. Their texts are
#: made for that, and can be two hundred times as long; usual pages are one step.
STEP_BYTES = 256 << 10
#: Characters of an event beside attributes and content, roughly.
_ROW_CHARACTERS = 500
#: Their texts: as expressions they take SQLAlchemy as long as a page of small events takes to load.
_STORED_ATTRIBUTES = literal_column("coalesce(pg_column_size(events.attributes), 0)", Integer)
_STORED_WITH_CONTENT = literal_column(
    "coalesce(pg_column_size(events.attributes), 0) + pg_column_size(events.payload)"
    " + coalesce(pg_column_size(events.properties), 0)",
    Integer,
)


def load_page(
    connection: Connection, user_id: str, found: Iterable[tuple[str, int]], *, content: bool
) -> list[StoredEvent]:
    """Read these events, ids and stored bytes, and stop where their content fills a page."""
    page: list[StoredEvent] = []
    for ids in _steps(found):
        room = PAGE_CHARACTERS - sum(map(_characters, page))
        read = _load_fitting(connection, user_id, ids, room, content=content, first=not page)
        page += read
        if len(read) < len(ids):
            break
    return page


def _steps(found: Iterable[tuple[str, int]]) -> Iterator[list[str]]:
    """Split the ids so that the events of each step take STEP_BYTES at most, or are one."""
    step: list[str] = []
    stored = 0
    for event_id, size in found:
        if step and stored + size > STEP_BYTES:
            yield step
            step, stored = [], 0
        step.append(event_id)
        stored += size
    if step:
        yield step


def _load_fitting(
    connection: Connection,
    user_id: str,
    ids: Sequence[str],
    room: int,
    *,
    content: bool,
    first: bool,
) -> list[StoredEvent]:
    """Read those events that so many characters have room for; the `first` of a page always."""
    size = _length(events.c.attributes) + _ROW_CHARACTERS
    if content:
        # With the properties of an event its payload comes a second time, as `original`.
        again = case((events.c.properties.is_not(None), 2), else_=1)
        size += _length(events.c.payload) * again + _length(events.c.properties)
    with_it = func.sum(size).over(order_by=events.c.id.desc())
    sized = (
        select(events.c.id, (with_it - size).label("before"), with_it.label("with_it"))
        .where(events.c.user_id == user_id, events.c.id.in_(ids))
        .subquery()
    )
    fitting = sized.c.with_it <= room
    if first:
        fitting |= sized.c.before == 0
    statement = (
        selection(content=content)
        .join(users, users.c.id == events.c.user_id)
        .where(
            events.c.user_id == user_id,
            events.c.id.in_(select(sized.c.id).where(fitting)),
            # Named once more in full, so that only the partitions of these ids are opened.
            events.c.id.in_(ids),
        )
        .order_by(events.c.id.desc())
    )
    return [stored_event(row) for row in connection.execute(statement)]


def _characters(event: StoredEvent) -> int:
    """Return the size of an event as `_load_fitting` has it."""
    again = 1 if event.properties is None else 2
    texts = (event.attributes, event.properties, *[event.payload] * again)
    return _ROW_CHARACTERS + sum(len(text) for text in texts if text is not None)


def stored_bytes(connection: Connection, *, content: bool) -> ColumnElement[int]:
    """Tell how large an event is without reading what is kept apart from its row.

    SQLite keeps texts as they are and tells their length fast: there all of a page is one step.
    """
    if connection.dialect.name == "sqlite":
        return literal(0)
    return _STORED_WITH_CONTENT if content else _STORED_ATTRIBUTES


def _length(column: Column[Any]) -> ColumnElement[int]:
    return func.coalesce(func.length(cast(column, Text)), 0)


def selection(*, content: bool) -> Select[Any]:
    """Select events with what `stored_event` wants; `users` is yet to be joined."""
    return select(
        events.c.user_id,
        events.c.id,
        events.c.type,
        events.c.source,
        events.c.subject,
        events.c.idempotency_key,
        events.c.attributes,
        events.c.occurred_at,
        events.c.received_at,
        events.c.status,
        events.c.processed_at,
        events.c.processing_error,
        events.c.attempts,
        events.c.payload if content else null().label("payload"),
        events.c.properties if content else null().label("properties"),
        users.c.subject.label("user_subject"),
        users.c.email.label("user_email"),
    )


def stored_event(row: Row[Any]) -> StoredEvent:
    """Return the event of a row of `selection`."""
    return StoredEvent(
        key=EventKey(row.user_id, row.id),
        type=row.type,
        source=row.source,
        subject=row.subject,
        idempotency_key=row.idempotency_key or "",
        attributes=row.attributes,
        occurred_at=row.occurred_at,
        received_at=row.received_at,
        status=EventStatus(row.status),
        processed_at=row.processed_at,
        processing_error=row.processing_error,
        attempts=row.attempts,
        payload=row.payload,
        properties=row.properties,
        user_subject=row.user_subject,
        user_email=row.user_email,
    )
