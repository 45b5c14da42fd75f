"""What the test of a row's life expects of the store; knows no SQL."""

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, auto

from eventstore.values import (
    OFFERED,
    Duplicate,
    EventStatus,
    KeyConflict,
    NewEvent,
    PendingEvent,
    User,
)

PAST, FUTURE = datetime(2020, 1, 1, tzinfo=UTC), datetime(2090, 1, 1, tzinfo=UTC)
MAX_ATTEMPTS = 3
USER = User(id=str(uuid.uuid4()), issuer="test", subject="life", email="")


class Due(Enum):
    """When the sweeper may take a row."""

    NEVER = auto()
    NOW = auto()
    #: For years, so that no patience with its first message is left.
    LONG_SINCE = auto()


@dataclass(slots=True)
class Row:
    """What the model knows of an event."""

    content: int
    due: Due
    status: EventStatus = EventStatus.PENDING
    attempts: int = 0
    #: That of a lease, or OFFERED.
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Hand:
    """What a worker holds: events that it read, and the token that it leased them by."""

    events: tuple[PendingEvent, ...]
    token: str | None


@dataclass(slots=True)
class Model:
    """The rows by id, and the ids by idempotency key."""

    rows: dict[str, Row] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def judge(
        self, wanted: list[tuple[str, int]], new: list[NewEvent]
    ) -> tuple[dict[int, type], dict[str, tuple[str, int]]]:
        """Return the kinds of verdicts by position, and by key the events that are new."""
        expected: dict[int, type] = {}
        stored: dict[str, tuple[str, int]] = {}
        for position, (key, content) in enumerate(wanted):
            if key in self.keys:
                taken = self.rows[self.keys[key]].content
            elif key in stored:
                taken = stored[key][1]
            else:
                stored[key] = (new[position].id, content)
                continue
            expected[position] = Duplicate if taken == content else KeyConflict
        return expected, stored

    def waiting(self) -> set[str]:
        """Return what was never attempted and is not leased."""
        return {
            event_id
            for event_id, row in self.rows.items()
            if row.status is EventStatus.PENDING
            and row.attempts == 0
            and row.token in {None, OFFERED}
        }

    def offered(self, attempts: int) -> set[str]:
        """Return what has so many attempts, and the sweeper has sent again."""
        return {
            event_id
            for event_id, row in self.rows.items()
            if row.status is EventStatus.PENDING
            and row.attempts == attempts
            and row.token == OFFERED
        }

    def held(self, hand: Hand) -> list[Row]:
        """Return the rows that whoever has this hand may still write to."""
        rows = [self.rows[event.key.id] for event in hand.events]
        tokens = {hand.token} if hand.token else {None, OFFERED}
        return [row for row in rows if row.status is EventStatus.PENDING and row.token in tokens]

    def sweep(self, *, again: bool, patient: bool) -> set[tuple[str, int]]:
        """Take what is due; returns ids and attempts of what is dispatched again."""
        taken = set()
        for event_id, row in self.rows.items():
            if row.status is not EventStatus.PENDING or row.due is Due.NEVER:
                continue
            if patient and row.attempts == 0 and row.due is not Due.LONG_SINCE:
                continue
            if row.attempts > MAX_ATTEMPTS:
                row.status, row.token = EventStatus.FAILED, None
            else:
                row.token = OFFERED
                row.due = Due.NOW if again else Due.NEVER
                taken.add((event_id, row.attempts))
        return taken


def make_event(key: str, content: int) -> NewEvent:
    return NewEvent(
        user_id=USER.id,
        id=str(uuid.UUID(int=(0x0190 << 112) | (7 << 76) | (2 << 62) | uuid.uuid4().int >> 67)),
        type="life",
        source="",
        subject="",
        idempotency_key=key,
        fingerprint=bytes([content]) * 32,
        occurred_at=PAST,
        received_at=PAST,
        attributes="",
        payload="{}",
    )
