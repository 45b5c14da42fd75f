"""Bytes of a request into its protobuf message, or into an error of ours."""

from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import Message

from ingest.v1.event_pb2 import EventInput
from ingest.v1.ingest_service_pb2 import (
    BatchSubmitEventsRequest,
    StreamEventsRequest,
    SubmitEventRequest,
)
from ingest_service.errors import FieldInvalid, Violation
from ingest_service.wire import cut

#: Events of one atomic batch.
MAX_BATCH = 1_000
#: Bytes up to which a batch is parsed, whatever it holds.
_SMALL_BATCH = 64 << 10
#: Fields of a batch that are not known here, and count before it is parsed.
_ROOM_FOR_UNKNOWN = 100
#: The wire format of a message with one event: tag 1, length-delimited; a varint's "more" bit.
_EVENTS_TAG = 1 << 3 | 2
_MORE = 0x80
_SHORTEST_EVENT = 4
M = TypeVar("M", bound=Message)


def parse_message(cls: type[M], wire: bytes) -> M:
    """Parse a request; raises FieldInvalid for bytes that are none."""
    try:
        return cls.FromString(wire)
    except Exception as error:
        # DecodeError, and RecursionError in the pure-Python implementation.
        allowed = f"must be a {cls.DESCRIPTOR.full_name} in the protobuf wire format"
        raise FieldInvalid([Violation("", allowed)]) from error


def parse_one(wire: bytes) -> Sequence[EventInput]:
    """Parse a SubmitEventRequest into its event; raises FieldInvalid."""
    request = parse_message(SubmitEventRequest, wire)
    if not request.HasField("event"):
        raise FieldInvalid([Violation("event", "is required")])
    return [request.event]


def parse_batch(wire: bytes) -> Sequence[EventInput]:
    """Parse a BatchSubmitEventsRequest into its events; raises FieldInvalid.

    One of far too many events is refused before it is parsed.

    That would stop the event loop for a fifth of a second, and take sixty times the message's size.
    Fields that are not known here count as events in a batch that large, beyond a hundred.
    """
    if len(wire) > _SMALL_BATCH:
        head = next(cut(wire, MAX_BATCH + _ROOM_FOR_UNKNOWN))
        if len(head) < len(wire):
            raise _wrong_count()
    events = parse_message(BatchSubmitEventsRequest, wire).events
    if not 1 <= len(events) <= MAX_BATCH:
        raise _wrong_count()
    return events


def _wrong_count() -> FieldInvalid:
    """Return the error of a batch of no event, or of too many."""
    return FieldInvalid([Violation("events", f"must hold 1 to {MAX_BATCH} events")])


def parse_stream(wires: Sequence[bytes]) -> Sequence[EventInput]:
    """Parse consecutive messages of a stream into the events of all of them.

    Protobuf messages that are put behind each other are one message, with the elements of all
    repeated fields, and one call takes a seventh of the time of many. Only messages that are
    exactly one event long are joined: then no broken one can reach into the next. What is parsed
    at once stays protobuf's: as objects of Python millions of tiny events would take gigabytes.
    """
    if len(wires) == 1 or all(map(_is_one_event, wires)):
        return parse_message(StreamEventsRequest, b"".join(wires)).events
    return [event for wire in wires for event in parse_message(StreamEventsRequest, wire).events]


def _is_one_event(wire: bytes) -> bool:
    """Whether a message holds one length-delimited `events`, and that fills it to the end."""
    size = len(wire)
    if size < _SHORTEST_EVENT or wire[0] != _EVENTS_TAG:
        return False
    if wire[1] < _MORE:
        return wire[1] == size - 2
    return wire[2] < _MORE and (wire[1] & ~_MORE | wire[2] << 7) == size - 3
