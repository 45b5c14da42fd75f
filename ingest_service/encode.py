"""Stored events and receipts into wire messages."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from eventstore.values import Duplicate, EventStatus, NewEvent, StoredEvent, Verdict
from ingest.v1 import event_pb2
from ingest.v1.ingest_service_pb2 import BatchSubmitEventsResponse
from ingest_service.decode import MAX_GROWTH

#: Levels that a Struct may have here: parsers stop at 100 nested messages, and each level of a
#: Struct takes three.
_STRUCT_DEPTH = 20
#: Values that a Struct may have here: the smallest takes some 13 bytes, and a client takes 4 MiB.
_STRUCT_VALUES = 50_000
#: Largest integer that a double, the only number of a Struct, holds exactly.
_EXACT_DOUBLES = 1 << 53
#: Bytes that a value takes in a Struct, beside its text: tags, lengths and a double.
_STRUCT_VALUE = 24
#: Bytes that a Struct takes at most for each byte of JSON: a list of single digits.
_STRUCT_GROWTH = 6
#: Bytes that an event's content may take as Structs beyond MAX_GROWTH times the payload's text.
_SMALL = 64 << 10
#: Bytes of an event beside attributes and content, roughly.
_FIXED = 600
#: Bytes of events with Structs in one answer, beyond which their content is JSON: with what is
#: around them less than the 4 MiB that a client takes.
_MOST_WITH_STRUCTS = (4 << 20) - (4 << 10)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def encode_receipts(
    stored: Iterable[tuple[int, NewEvent, Verdict | None]],
) -> Sequence[event_pb2.EventReceipt]:
    """Return receipts of events that are stored, now or (Duplicate) before.

    `stored` has the position, the event and the verdict of each.
    """
    receipts = BatchSubmitEventsResponse().receipts
    new = event_pb2.EventReceipt(status=event_pb2.EVENT_STATUS_PENDING)
    received_at = None
    for index, event, verdict in stored:
        if isinstance(verdict, Duplicate):
            receipts.append(_duplicate(verdict, index))
            continue
        # The events of one message share their time of receipt.
        if event.received_at is not received_at:
            received_at = event.received_at
            new.received_at.CopyFrom(_timestamp(received_at))
        new.event_id = event.id
        new.index = index
        # Copies it: so one message serves for all, and takes a third of the time of one for each.
        receipts.append(new)
    return receipts


def _duplicate(verdict: Duplicate, index: int) -> event_pb2.EventReceipt:
    return event_pb2.EventReceipt(
        event_id=verdict.event_id,
        duplicate=True,
        received_at=_timestamp(verdict.received_at),
        status=_status(verdict.status),
        index=index,
    )


def encode_events(page: Sequence[StoredEvent], payload_format: int) -> Sequence[event_pb2.Event]:
    """Return the events of one answer in the form that the reader asked for.

    Content that would take too much as Structs is JSON, which is bounded where it is read.
    """
    encoded = [_encode_event(stored, payload_format) for stored in page]
    if payload_format == event_pb2.PAYLOAD_FORMAT_JSON:
        return encoded
    most = sum(most_bytes(stored, payload_format) for stored in page)
    if most > _MOST_WITH_STRUCTS < sum(event.ByteSize() for event in encoded):
        return [_encode_event(stored, event_pb2.PAYLOAD_FORMAT_JSON) for stored in page]
    return encoded


def _encode_event(stored: StoredEvent, payload_format: int) -> event_pb2.Event:
    event = event_pb2.Event(
        event_id=stored.key.id,
        type=stored.type,
        source=stored.source,
        subject=stored.subject,
        idempotency_key=stored.idempotency_key,
        attributes=orjson.loads(stored.attributes) if stored.attributes else None,
        occurred_at=_timestamp(stored.occurred_at),
        received_at=_timestamp(stored.received_at),
        status=_status(stored.status),
        processed=stored.status is EventStatus.PROCESSED,
        processed_at=_timestamp(stored.processed_at) if stored.processed_at else None,
        processing_error=stored.processing_error or "",
        attempts=stored.attempts,
        user=event_pb2.User(
            id=stored.key.user_id, subject=stored.user_subject, email=stored.user_email
        ),
    )
    if stored.payload is not None:
        _add_content(event, stored, payload_format)
    return event


def most_bytes(stored: StoredEvent, payload_format: int) -> int:
    """Return about how much an event takes in an answer at most, without encoding it."""
    texts = [stored.payload or ""]
    if stored.properties is not None:
        # As `original`, the payload comes a second time.
        texts += [stored.payload or "", stored.properties]
    size = sum(map(_bytes, texts))
    if payload_format != event_pb2.PAYLOAD_FORMAT_JSON:
        # What grows is numbers and signs, a byte each, and no text of another alphabet.
        growth = (_STRUCT_GROWTH - 1) * sum(map(len, texts))
        size += min(growth, 2 * _STRUCT_VALUES * _STRUCT_VALUE)
    return _FIXED + _bytes(stored.attributes) + size


def _bytes(text: str | None) -> int:
    if text is None:
        return 0
    return len(text) if text.isascii() else len(text.encode())


def _add_content(event: event_pb2.Event, stored: StoredEvent, payload_format: int) -> None:
    """Add payload and properties; `original` is composed here, the payload is stored once."""
    payload = orjson.loads(stored.payload or "null")
    as_json = payload_format == event_pb2.PAYLOAD_FORMAT_JSON
    if as_json or not (payload is None or fits_struct(payload)):
        event.payload_json = orjson.dumps(payload).decode()
    elif payload is not None:
        _fill(event.payload, payload)
    if stored.properties is not None:
        properties = orjson.loads(stored.properties) | {"original": payload}
        if as_json or not fits_struct(properties):
            event.properties_json = orjson.dumps(properties).decode()
        else:
            _fill(event.properties, properties)
    structs = event.payload.ByteSize() + event.properties.ByteSize()
    # Measured by what was sent: PostgreSQL's text has blanks that were not.
    if structs > _SMALL and structs > MAX_GROWTH * len(orjson.dumps(payload)) + _SMALL:
        # Each text takes the place of its Struct: they are a oneof.
        _add_content(event, stored, event_pb2.PAYLOAD_FORMAT_JSON)


def fits_struct(value: Any) -> bool:
    """Whether a Struct holds a JSON value exactly: an object, not deep, not huge, with doubles."""
    if not isinstance(value, dict):
        return False
    level: list[Any] = [value]
    count = 0
    for _ in range(_STRUCT_DEPTH + 1):
        inner: list[Any] = []
        for container in level:
            inner.extend(container.values() if isinstance(container, dict) else container)
        count += len(inner)
        if count > _STRUCT_VALUES:
            return False
        for found in inner:
            if type(found) is int and abs(found) > _EXACT_DOUBLES:
                return False
        level = [found for found in inner if isinstance(found, dict | list)]
        if not level:
            return True
    return False


def _fill(struct: Struct, value: Mapping[str, Any]) -> None:
    struct.SetInParent()
    struct.update(value)


def _status(status: EventStatus | None) -> event_pb2.EventStatus.ValueType:
    return event_pb2.EventStatus.ValueType(int(status or 0))


def _timestamp(moment: datetime) -> Timestamp:
    """Return an aware datetime as Timestamp; FromDatetime takes five times as long."""
    microseconds = (moment - _EPOCH) // _MICROSECOND
    seconds, rest = divmod(microseconds, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1_000)
