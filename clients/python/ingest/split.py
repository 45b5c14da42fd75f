"""Splitting any number of events into StreamEvents calls, and those into messages.

A call that breaks says nothing about what it stored, so all of it is sent again. What one call
holds is therefore bounded, and only the call under way and the next one are held in memory.
"""

from collections.abc import Iterable, Iterator, Sequence

from ingest.events import new_key
from ingest.v1.event_pb2 import EventInput
from ingest.v1.ingest_service_pb2 import StreamEventsRequest

#: Events in one call: as many receipts as the server returns.
EVENTS_PER_CALL = 10_000

#: Bytes of events in one call.
BYTES_PER_CALL = 16 * 1024 * 1024

#: Events in one message: enough to make the cost of a message small.
EVENTS_PER_MESSAGE = 500

#: Bytes of events in one message; a larger event travels alone.
BYTES_PER_MESSAGE = 1024 * 1024

#: Bytes of the largest event that fits into a message of 4 MiB, the server's limit, with framing.
LARGEST_EVENT = 4 * 1024 * 1024 - 64


def with_key(event: EventInput) -> EventInput:
    """Answer the event, or a copy with a random idempotency key when it has none."""
    if event.idempotency_key:
        return event
    keyed = EventInput()
    keyed.CopyFrom(event)
    keyed.idempotency_key = new_key()
    return keyed


def calls(events: Iterable[EventInput]) -> Iterator[list[EventInput]]:
    """Split events into lists, each for one call.

    An event that is too large for any message makes a list of its own.
    """
    group: list[EventInput] = []
    size = 0
    for event in map(with_key, events):
        length = event.ByteSize()
        alone = length > LARGEST_EVENT
        full = len(group) == EVENTS_PER_CALL or size + length > BYTES_PER_CALL
        if group and (full or alone):
            yield group
            group, size = [], 0
        if alone:
            yield [event]
        else:
            group.append(event)
            size += length
    if group:
        yield group


def messages(events: Sequence[EventInput]) -> Iterator[StreamEventsRequest]:
    """Split the events of one call into messages."""
    start = size = 0
    for end, event in enumerate(events):
        length = event.ByteSize()
        if end > start and (end - start == EVENTS_PER_MESSAGE or size + length > BYTES_PER_MESSAGE):
            yield StreamEventsRequest(events=events[start:end])
            start, size = end, 0
        size += length
    yield StreamEventsRequest(events=events[start:])
