"""The values that pass between server, worker and database; they know no SQL and no wire format."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import NamedTuple


class EventStatus(IntEnum):
    """Where an event is in its life; the numbers are those of the wire contract and the column."""

    PENDING = 1
    PROCESSED = 2
    INVALID = 3
    FAILED = 4


#: In place of a lease's token: the sweeper has taken the row and sent a message for it, and the
#: first recovery that comes may take it. What waits for a back-off to pass has no token at all.
OFFERED = "00000000-0000-0000-0000-000000000000"
#: Milliseconds by which the time in an event's id may be ahead of its time of receipt: ids keep
#: their order when the clock is corrected by a little.
MOST_AHEAD_MS = 1_000


class EventKey(NamedTuple):
    """What names an event everywhere: the primary key of its row."""

    user_id: str
    id: str


#: (user_id, key): a key means nothing beyond its user. A plain tuple: one is made for each event.
IdempotencyKey = tuple[str, str]


class KeyHolder(NamedTuple):
    """An idempotency key and the event that holds it."""

    key: IdempotencyKey
    event_id: str
    #: SHA-256 of the content.
    fingerprint: bytes
    received_at: datetime
    #: None when retention has dropped the event and kept the key.
    status: EventStatus | None


#: The ids of some events by user: how keys travel from the intake through a message.
KeysByUser = dict[str, list[str]]


class User(NamedTuple):
    """The caller on whose behalf events are stored; a NamedTuple, because it is hashed often."""

    #: UUID version 5 of issuer and subject, so that nobody has to look it up.
    id: str
    issuer: str
    subject: str
    #: Empty when the token carries none.
    email: str


class NewEvent(NamedTuple):
    """An event that was translated from the wire and may be stored.

    A NamedTuple and no dataclass because one is built for every event on the hot path, and a
    frozen dataclass costs four times as much to build.
    """

    user_id: str
    #: UUID version 7; its first 48 bits are the time in milliseconds and choose the partition.
    id: str
    type: str
    source: str
    subject: str
    #: Empty when the client gave none.
    idempotency_key: str
    #: SHA-256 of the content; empty without an idempotency key.
    fingerprint: bytes
    #: UTC, aware, like every datetime here.
    occurred_at: datetime
    received_at: datetime
    #: JSON text, empty for no attributes.
    attributes: str
    #: JSON text.
    payload: str


class Submission(NamedTuple):
    """The events of one call, or of some messages of a stream, which wait for one answer."""

    user: User
    events: Sequence[NewEvent]
    #: Whether one refused event refuses them all.
    atomic: bool
    #: Approximate size in bytes, for the bounds of the intake.
    size: int


class Duplicate(NamedTuple):
    """The verdict that an event had been stored before, with the same key and content."""

    event_id: str
    received_at: datetime
    #: None when the event is no longer there.
    status: EventStatus | None


class KeyConflict(NamedTuple):
    """The verdict that the key is taken by an event with other content."""

    #: Empty when that event is of the same batch, and so refused as well.
    event_id: str


class NotStorable(NamedTuple):
    """The verdict that the database refuses the content, for good."""

    reason: str


Verdict = Duplicate | KeyConflict | NotStorable


class PendingEvent(NamedTuple):
    """A row that a worker has claimed."""

    key: EventKey
    type: str
    #: JSON text as stored.
    payload: str
    attempts: int
    email: str


class Finished(NamedTuple):
    """What processing made of one event."""

    key: EventKey
    status: EventStatus
    #: JSON text; None unless PROCESSED.
    properties: str | None
    #: At most 255 characters; None when PROCESSED.
    error: str | None


class Postponed(NamedTuple):
    """An attempt that failed and is to be repeated."""

    key: EventKey
    #: Seconds until the next attempt is due.
    delay: float
    error: str


class DueEvent(NamedTuple):
    """A row that the sweeper took because its time had passed."""

    key: EventKey
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """An event as it is read back, together with its user."""

    key: EventKey
    type: str
    source: str
    subject: str
    idempotency_key: str
    attributes: str | None
    occurred_at: datetime
    received_at: datetime
    status: EventStatus
    processed_at: datetime | None
    processing_error: str | None
    attempts: int
    #: JSON text; None when the reader did not ask for content.
    payload: str | None
    properties: str | None
    user_subject: str
    user_email: str
