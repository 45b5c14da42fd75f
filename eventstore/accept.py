"""Writes a group of submissions in the caller's transaction: users, idempotency keys, events."""

from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter

from sqlalchemy import Connection

from eventstore.bulk import bulk
from eventstore.errors import ContentionError
from eventstore.values import (
    Duplicate,
    EventStatus,
    IdempotencyKey,
    KeyConflict,
    KeyHolder,
    NewEvent,
    Submission,
    User,
    Verdict,
)

#: Events up to which a group with keys is written by one statement: that spares four round trips,
#: and COPY spares PostgreSQL's time when they are more (figures: docs/decisions.md).
_SMALL_GROUP = 100
#: The same where the database is far: that many are written well within its time for a statement.
_FAR_GROUP = 5_000

#: For one submission: the verdicts by position. A position that is missing was stored as new.
Verdicts = dict[int, Verdict]


def accept(
    connection: Connection,
    submissions: Sequence[Submission],
    *,
    unseen: Sequence[User],
    next_attempt: datetime,
    far: bool = False,
) -> tuple[list[Verdicts], list[NewEvent]]:
    """Store what can be stored, and say what was decided of each submission.

    `unseen` are the users whose row may be missing or old; `far` says that round trips to the
    database take longer than its work. The second result holds the rows written, in order. Nothing
    is committed here, unless the connection does so by itself. Users and keys are written in sorted
    order, so that two groups never wait for each other in a circle. Raises ContentionError where
    all may be well when it is tried again and not `far`.
    """
    if unseen:
        # Of one who is named twice, by a token with an address and by one without, the address.
        by_id = {user.id: user for user in sorted(unseen, key=attrgetter("email"))}
        bulk(connection).upsert_users(connection, [by_id[user_id] for user_id in sorted(by_id)])
    verdicts: list[Verdicts] = [{} for _ in submissions]
    rows = [event for submission in submissions for event in submission.events]
    first: dict[IdempotencyKey, NewEvent] = {}
    for event in rows:
        if event.fingerprint:
            first.setdefault((event.user_id, event.idempotency_key), event)
    if not first:
        if rows:
            bulk(connection).insert_events(connection, rows, next_attempt)
        return verdicts, rows
    plain = [event for event in rows if not event.fingerprint]
    owners = [first[key] for key in sorted(first)]
    if together := _go_together(connection, submissions, far=far):
        written = bulk(connection).insert_keyed(connection, owners + plain, next_attempt)
        all_new = len(written) == len(rows)
    else:
        written = bulk(connection).insert_keys(connection, owners)
        all_new = len(written) == len(rows) - len(plain)
    if not all_new:
        rows = _settle_keys(connection, submissions, verdicts, first, written)
        if together and _has_batches(submissions) and {row.id for row in rows} != written:
            raise ContentionError("a batch is refused, and its events are written")
    if rows and not together:
        bulk(connection).insert_events(connection, rows, next_attempt)
    return verdicts, rows


def is_one_statement(
    connection: Connection,
    submissions: Sequence[Submission],
    unseen: Sequence[User],
    *,
    far: bool = False,
) -> bool:
    """Whether `accept` will write with one statement, which needs no transaction around it."""
    if unseen or connection.dialect.name == "sqlite":
        return False
    if not _has_keys(submissions):
        return True
    return _go_together(connection, submissions, far=far) and not _has_batches(submissions)


def _has_keys(submissions: Sequence[Submission]) -> bool:
    return any(event.fingerprint for submission in submissions for event in submission.events)


def _has_batches(submissions: Sequence[Submission]) -> bool:
    """Whether one taken key may refuse more than its own event."""
    return any(submission.atomic and len(submission.events) > 1 for submission in submissions)


def _go_together(connection: Connection, submissions: Sequence[Submission], *, far: bool) -> bool:
    """Whether keys and events are written in one statement, each event unless its key is taken.

    Not those of an atomic batch, unless round trips are worth more than what is written in vain
    when one taken key refuses the whole.
    """
    if connection.dialect.name == "sqlite":
        return False
    count = sum(len(submission.events) for submission in submissions)
    return count <= _FAR_GROUP if far else count <= _SMALL_GROUP and not _has_batches(submissions)


def _settle_keys(
    connection: Connection,
    submissions: Sequence[Submission],
    verdicts: Sequence[Verdicts],
    first: dict[IdempotencyKey, NewEvent],
    written: set[str],
) -> list[NewEvent]:
    """Decide by idempotency key which events are new, in the order of the submissions.

    `first` has the event for which each key was tried; `written` are the ids of those that got it.
    """
    holders = _read_holders(connection, [key for key in first if first[key].id not in written])
    owners: dict[IdempotencyKey, NewEvent] = {}
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
    mine = [key for key in sorted(first) if first[key].id in written]
    astray = [key for key in mine if owners.get(key) is not first[key]]
    if astray:
        bulk(connection).free_keys(connection, [first[key] for key in astray])
        bulk(connection).insert_keys(connection, [owners[key] for key in astray if key in owners])
    return rows


def _judge(
    submission: Submission, holders: dict[IdempotencyKey, KeyHolder], found: Verdicts
) -> list[NewEvent]:
    """Return the events of one submission whose key is free; the others get a verdict."""
    new: list[NewEvent] = []
    mine: dict[IdempotencyKey, KeyHolder] = {}
    for position, event in enumerate(submission.events):
        if event.fingerprint:
            key = (event.user_id, event.idempotency_key)
            holder = holders.get(key) or mine.get(key)
            # What holds its own key was written when this group was tried before.
            if holder is not None and holder.event_id != event.id:
                if holder.fingerprint == event.fingerprint:
                    found[position] = Duplicate(holder.event_id, holder.received_at, holder.status)
                else:
                    # An event of the same batch goes the same way: its id leads nowhere.
                    lost = submission.atomic and key in mine
                    found[position] = KeyConflict("" if lost else holder.event_id)
                continue
            mine[key] = _as_holder(event)
        new.append(event)
    return new


def _as_holder(event: NewEvent) -> KeyHolder:
    key = (event.user_id, event.idempotency_key)
    return KeyHolder(key, event.id, event.fingerprint, event.received_at, EventStatus.PENDING)


def _read_holders(
    connection: Connection, keys: Sequence[IdempotencyKey]
) -> dict[IdempotencyKey, KeyHolder]:
    """Read who holds the keys that were taken before this group."""
    found: list[KeyHolder] = bulk(connection).holders(connection, keys) if keys else []
    # Where the look-up takes several statements, one key may be found by two of them.
    holders = {holder.key: holder for holder in found}
    if len(holders) != len(keys):
        raise ContentionError("an idempotency key expired meanwhile")
    return holders
