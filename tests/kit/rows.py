"""Rows written by hand, as the intake writes them, and looked at as the database has them."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import Engine, Row, select, update

from eventstore.accept import accept
from eventstore.bulk import bulk
from eventstore.clock import in_seconds
from eventstore.schema import events
from eventstore.values import EventKey, NewEvent, Submission, User
from ingest_service.ids import EventIds

ALICE = User(
    id="11111111-1111-5111-8111-111111111111",
    issuer="ingest",
    subject="alice",
    email="alice@example.org",
)
_ids = EventIds()


def new_user() -> User:
    """Return a user who is not in the database yet."""
    return User(id=str(uuid4()), issuer="ingest", subject=uuid4().hex, email="")


def add(
    store: Engine,
    *payloads: Any,
    user: User = ALICE,
    due_in: float = 5.0,
    received_at: datetime | None = None,
) -> list[EventKey]:
    """Accept events with these payloads; they are swept when `due_in` seconds have passed."""
    now = received_at or datetime.now(UTC)
    ids = _ids.take(int(now.timestamp() * 1000), len(payloads))
    if received_at is not None:
        ids = EventIds().take(int(now.timestamp() * 1000), len(payloads))
    rows = [
        NewEvent(
            user.id, event_id, "page.viewed", "", "", "", b"", now, now, "", json.dumps(payload)
        )
        for event_id, payload in zip(ids, payloads, strict=False)
    ]
    submission = Submission(user=user, events=rows, atomic=True, size=1)
    with store.begin() as connection:
        due = datetime.now(UTC) + timedelta(seconds=due_in)
        accept(connection, [submission], unseen=[user], next_attempt=due)
    return [EventKey(row.user_id, row.id) for row in rows]


def rows_of(store: Engine, keys: Sequence[EventKey]) -> list[Row[Any]]:
    """Return the rows of these events, in the order of the keys."""
    with store.connect() as connection:
        found = {
            row.id: row
            for row in connection.execute(
                select(events).where(events.c.id.in_([key.id for key in keys]))
            )
        }
    return [found[key.id] for key in keys]


def row_of(store: Engine, key: EventKey) -> Row[Any]:
    """Return the row of one event."""
    return rows_of(store, [key])[0]


def make_due(store: Engine, keys: Sequence[EventKey], seconds: float = -1.0) -> None:
    """Let the time until the next attempt pass: the clock is the database's."""
    with store.begin() as connection:
        connection.execute(
            update(events)
            .where(events.c.id.in_([key.id for key in keys]))
            .values(next_attempt_at=in_seconds(seconds))
        )


def offer(store: Engine, keys: Sequence[EventKey]) -> None:
    """Do with the events what a sweep does that finds them due: a recovery may take them now."""
    with store.begin() as connection:
        bulk(connection).offer(connection, keys, 15.0)
