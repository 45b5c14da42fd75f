"""Making an `EventInput` from plain Python values; what a server would refuse is left to it."""

import json
import secrets
import time
from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from ingest.errors import InvalidEvent
from ingest.v1.event_pb2 import EventInput, FieldViolation


def new_event(
    event_type: str,
    payload: object = None,
    *,
    payload_json: str | None = None,
    source: str = "",
    subject: str = "",
    idempotency_key: str = "",
    occurred_at: datetime | None = None,
    attributes: Mapping[str, str] | None = None,
) -> EventInput:
    """Make an event that is safe to submit more than once.

    Give the payload as a value that `json.dumps` takes, or as JSON text, which is sent as it
    stands (for numbers that a float cannot hold). Without an `idempotency_key` the event gets a
    random one, so that the same event is stored once however often it is submitted.

    Raises:
        InvalidEvent: the payload is no JSON (NaN and infinities included), a string holds a lone
            surrogate, or `occurred_at` has no time zone.
        TypeError: a field has the wrong type, or both forms of the payload are given.

    """
    if payload_json is None:
        payload_json = _dump(payload)
    elif payload is not None:
        raise TypeError("give payload or payload_json, not both")
    try:
        return EventInput(
            type=event_type,
            source=source,
            subject=subject,
            idempotency_key=idempotency_key or new_key(),
            occurred_at=None if occurred_at is None else timestamp(occurred_at, "occurred_at"),
            payload_json=payload_json,
            attributes=attributes,
        )
    except UnicodeError as error:
        raise _invalid("event", "strings must be valid Unicode") from error


def new_key() -> str:
    """Make an idempotency key: a UUID of version 7 (RFC 9562), random behind the time.

    Keys that begin with the time are written at one end of the server's index.
    """
    milliseconds = time.time_ns() // 1_000_000
    random = secrets.randbits(12) << 64 | secrets.randbits(62)
    return str(UUID(int=milliseconds << 80 | 0x7 << 76 | 0b10 << 62 | random))


def timestamp(moment: datetime, field: str) -> Timestamp:
    """Convert a datetime exactly, to the microsecond.

    Raises:
        InvalidEvent: it has no time zone; `field` names it in the error.

    """
    if moment.utcoffset() is None:
        raise _invalid(field, "must have a time zone")
    converted = Timestamp()
    converted.FromDatetime(moment)
    return converted


def _dump(payload: object) -> str:
    try:
        return json.dumps(payload, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise _invalid("payload", f"must be JSON: {error}") from error


def _invalid(field: str, description: str) -> InvalidEvent:
    return InvalidEvent(
        "the event cannot be sent",
        reason="FIELD_INVALID",
        field_violations=[FieldViolation(field=field, description=description)],
    )
