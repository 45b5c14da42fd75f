"""Writes a group of submissions in the caller's transaction: users, idempotency keys, events."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, delete, func, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from eventstore.bulk import bulk
from eventstore.clock import in_seconds
from eventstore.errors import ContentionError
from eventstore.schema import idempotency_keys, users
from eventstore.values import (
    Duplicate,
    EventKey,
    EventStatus,
    KeyConflict,
    NewEvent,
    Submission,
    User,
    Verdict,
)

#: (user_id, idempotency_key)
Key = tuple[str, str]

#: For one submission: the verdicts by position. A position that is missing was stored as new.
Verdicts = dict[int, Verdict]


class _Holder(NamedTuple):
    """The event that holds an idempotency key."""

    event_id: str
    fingerprint: bytes
    received_at: datetime
    status: EventStatus | None


def accept(
    connection: Connection,
    submissions: Sequence[Submission],
    *,
    unseen: Sequence[User],
    next_attempt: datetime,
) -> tuple[list[Verdicts], list[NewEvent]]:
    """Store what can be stored, and say what was decided of each submission.

    `unseen` are the users whose row may be missing or old. The second result holds the rows
    written, in order. Nothing is committed here. Users and keys are written in sorted order, so
    that two groups never wait for each other in a circle.
    """
    if unseen:
        upsert_users(connection, unseen)
    verdicts: list[Verdicts] = [{} for _ in submissions]
    if _is_alone(connection, submissions):
        return verdicts, _store_alone(connection, submissions[0], verdicts[0], next_attempt)
    if _has_keys(submissions):
        rows = _settle_keys(connection, submissions, verdicts)
    else:
        rows = [event for submission in submissions for event in submission.events]
    if rows:
        bulk(connection).insert_events(connection, rows, next_attempt)
    return verdicts, rows


def is_one_statement(
    connection: Connection, submissions: Sequence[Submission], unseen: Sequence[User]
) -> bool:
    """Whether `accept` will write with one statement, which needs no transaction around it."""
    if unseen or connection.dialect.name == "sqlite":
        return False
    return _is_alone(connection, submissions) or not _has_keys(submissions)


def upsert_users(connection: Connection, seen: Iterable[User]) -> None:
    """Write the users that are new, and e-mail address and last_seen_at of the others."""
    insert = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(users)
    statement = insert.values(first_seen_at=in_seconds(0), last_seen_at=in_seconds(0))
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[users.c.id],
            set_={
                # A token without an address does not erase the known one.
                "email": func.coalesce(func.nullif(insert.excluded.email, ""), users.c.email),
                "last_seen_at": insert.excluded.last_seen_at,
            },
        ),
        [
            {"id": user.id, "issuer": user.issuer, "subject": user.subject, "email": user.email}
            for user in sorted(seen, key=lambda user: user.id)
        ],
    )


def _is_alone(connection: Connection, submissions: Sequence[Submission]) -> bool:
    """Whether the group is one event with a key, and the database can write both at once."""
    events = submissions[0].events
    return (
        len(submissions) == len(events) == 1
        and bool(events[0].fingerprint)
        and connection.dialect.name == "postgresql"
    )


def _store_alone(
    connection: Connection, submission: Submission, found: Verdicts, next_attempt: datetime
) -> list[NewEvent]:
    """Store the one event of a group, unless its key is taken."""
    (event,) = submission.events
    if bulk(connection).insert_keyed(connection, event, next_attempt):
        return [event]
    # Only read: were the key to expire now, the group would be tried again.
    holders = _read_holders(connection, [(event.user_id, event.idempotency_key)])
    return _judge(submission, holders, found)


def _has_keys(submissions: Sequence[Submission]) -> bool:
    return any(event.fingerprint for submission in submissions for event in submission.events)


def _settle_keys(
    connection: Connection, submissions: Sequence[Submission], verdicts: Sequence[Verdicts]
) -> list[NewEvent]:
    """Decide by idempotency key which events are new, in the order of the submissions."""
    events = [event for submission in submissions for event in submission.events]
    keyed = [event for event in events if event.fingerprint]
    first: dict[Key, NewEvent] = {}
    for event in keyed:
        first.setdefault((event.user_id, event.idempotency_key), event)
    free = bulk(connection).insert_keys(connection, [first[key] for key in sorted(first)])
    if len(free) == len(keyed):
        # Mostly no key was taken before, and none comes twice.
        return events
    holders = _read_holders(connection, [key for key in first if key not in free])
    owners: dict[Key, NewEvent] = {}
    rows: list[NewEvent] = []
    for submission, found in zip(submissions, verdicts, strict=True):
        new = _judge(submission, holders, found)
        if submission.atomic and any(isinstance(v, KeyConflict) for v in found.values()):
            continue
        for event in new:
            rows.append(event)
            if event.fingerprint:
                key = (event.user_id, event.idempotency_key)
                owners[key] = event
                holders[key] = _as_holder(event)
    # A key was written for the first event that has it. When that event's batch was refused as a
    # whole, the key belongs to a later event of the group, or to none.
    astray = [key for key in sorted(free) if owners.get(key) is not first[key]]
    if astray:
        pair = tuple_(idempotency_keys.c.user_id, idempotency_keys.c.key)
        connection.execute(delete(idempotency_keys).where(pair.in_(astray)))
        bulk(connection).insert_keys(connection, [owners[key] for key in astray if key in owners])
    return rows


def _judge(submission: Submission, holders: dict[Key, _Holder], found: Verdicts) -> list[NewEvent]:
    """Return the events of one submission whose key is free; the others get a verdict."""
    new: list[NewEvent] = []
    mine: dict[Key, _Holder] = {}
    for position, event in enumerate(submission.events):
        if event.fingerprint:
            key = (event.user_id, event.idempotency_key)
            holder = holders.get(key) or mine.get(key)
            if holder is not None:
                found[position] = (
                    Duplicate(holder.event_id, holder.received_at, holder.status)
                    if holder.fingerprint == event.fingerprint
                    else KeyConflict(holder.event_id)
                )
                continue
            mine[key] = _as_holder(event)
        new.append(event)
    return new


def _as_holder(event: NewEvent) -> _Holder:
    return _Holder(event.id, event.fingerprint, event.received_at, EventStatus.PENDING)


def _read_holders(connection: Connection, keys: Sequence[Key]) -> dict[Key, _Holder]:
    """Read who holds the keys that were taken before this group."""
    if not keys:
        return {}
    table = idempotency_keys
    pair = tuple_(table.c.user_id, table.c.key)
    found = connection.execute(select(table).where(pair.in_(keys))).all()
    if len(found) != len(keys):
        raise ContentionError("an idempotency key expired meanwhile")
    status = bulk(connection).statuses(
        connection, [EventKey(row.user_id, row.event_id) for row in found]
    )
    return {
        (row.user_id, row.key): _Holder(
            row.event_id,
            bytes(row.fingerprint),
            row.received_at,
            # None when retention has dropped the event and kept the key.
            status.get(EventKey(row.user_id, row.event_id)),
        )
        for row in found
    }
