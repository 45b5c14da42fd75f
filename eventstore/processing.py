"""The statements of a worker: read, lease, finish, postpone, sweep.

A PENDING row is in one of four places:

- `attempts` 0 and no lease token: it waits for its first delivery; `waiting` reads it.
- no lease token: it waits for the sweeper, until `next_attempt_at`; `take_due` takes it.
- OFFERED in place of a token: the sweeper has sent a message for it; `lease` takes it, and while
  `attempts` is 0 `waiting` still reads it. At `next_attempt_at` the message counts as lost.
- with a lease token: a recovery attempt holds it, until `next_attempt_at`.

So a message alone, which anybody may have written who reaches the broker, begins no attempt before
its time.

`finish` writes only to rows that are still where the caller found them. That is what makes an
event final once, whoever else works on it.
"""

from collections.abc import Sequence

import structlog
from sqlalchemy import Connection, func, literal, or_, select, text, update

from eventstore.bulk import bulk
from eventstore.clock import in_seconds
from eventstore.schema import Id, events
from eventstore.values import (
    OFFERED,
    DueEvent,
    EventKey,
    EventStatus,
    Finished,
    PendingEvent,
    Postponed,
)

log = structlog.get_logger()

#: Any number, the same in every process that sweeps one database.
_SWEEP_LOCK = 0x1A6E57
_UNFINISHED = "the last attempt did not finish: its worker died or ran out of time"


def waiting(connection: Connection, keys: Sequence[EventKey]) -> list[PendingEvent]:
    """Return the events that wait for their first delivery.

    What is final, and what has been attempted before, is left out. No row is locked: a message
    hardly ever arrives twice, and then the work is done twice and written once.
    """
    found: list[PendingEvent] = bulk(connection).waiting(connection, keys)
    return found


def lease(
    connection: Connection, keys: Sequence[EventKey], *, attempts: int, token: str, seconds: float
) -> list[PendingEvent]:
    """Count an attempt and hold the events for `seconds`; commit before working on them.

    Only events that the sweeper offers, with `attempts` attempts, are taken, so a message that
    arrives twice takes nothing the second time.
    """
    found: list[PendingEvent] = bulk(connection).lease(
        connection, keys, attempts=attempts, token=token, seconds=seconds
    )
    return found


def finish(connection: Connection, results: Sequence[Finished], token: str | None = None) -> int:
    """Write final states; returns how many rows were still ours to write.

    `token` is that of the lease, None after `waiting`: what is not leased then, offered or not.
    """
    written: int = bulk(connection).finish(connection, results, token) if results else 0
    return written


def postpone(
    connection: Connection, failures: Sequence[Postponed], token: str | None = None
) -> None:
    """Note failed attempts and when the next one is due.

    `lease` has counted its attempt already; after `waiting`, with no token, it is counted here,
    once, however many messages had it delivered at the same time.
    """
    held = func.coalesce(events.c.lease_token, literal(OFFERED, Id)) == (token or OFFERED)
    for failure in failures:
        connection.execute(
            update(events)
            .where(
                events.c.user_id == failure.key.user_id,
                events.c.id == failure.key.id,
                events.c.status == EventStatus.PENDING,
                held,
                *([] if token else [events.c.attempts == 0]),
            )
            .values(
                attempts=events.c.attempts + (0 if token else 1),
                lease_token=None,
                next_attempt_at=in_seconds(failure.delay),
                processing_error=failure.error,
            )
        )


def try_sweep_lock(connection: Connection) -> bool:
    """Become the only sweeper until the end of this transaction, or return False."""
    if connection.dialect.name == "sqlite":
        return True
    return bool(connection.execute(select(func.pg_try_advisory_xact_lock(_SWEEP_LOCK))).scalar())


def take_due(
    connection: Connection,
    *,
    limit: int,
    again_after: float,
    max_attempts: int,
    patience: float = 0.0,
) -> list[DueEvent]:
    """Take PENDING rows whose time has passed, longest overdue first, to dispatch them again.

    Leases that ran out end here. A row whose last attempt did not finish is returned once more,
    with `max_attempts` attempts; when that one does not finish either, it becomes FAILED and is
    not returned.
    A row that is returned becomes due again after `again_after` seconds, should its message be
    lost. Rows that were never attempted are left to their messages until they are overdue by
    `patience` seconds.
    """
    due = (
        select(events.c.user_id, events.c.id, events.c.attempts)
        .where(events.c.status == text("1"), events.c.next_attempt_at <= in_seconds(0))
        .order_by(events.c.next_attempt_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    if patience:
        due = due.where(
            or_(events.c.attempts > 0, events.c.next_attempt_at <= in_seconds(-patience))
        )
    taken = [
        DueEvent(EventKey(row.user_id, row.id), row.attempts) for row in connection.execute(due)
    ]
    exhausted = [event for event in taken if event.attempts > max_attempts]
    remaining = [event for event in taken if event.attempts <= max_attempts]
    bulk(connection).offer(connection, [event.key for event in remaining], again_after)
    for event in exhausted:
        connection.execute(
            update(events)
            .where(events.c.user_id == event.key.user_id, events.c.id == event.key.id)
            .values(
                status=EventStatus.FAILED,
                lease_token=None,
                processed_at=in_seconds(0),
                processing_error=func.coalesce(events.c.processing_error, literal(_UNFINISHED)),
            )
        )
        log.info("event_failed", event_id=event.key.id, reason=_UNFINISHED)
    return remaining
