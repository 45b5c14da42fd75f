"""Messages cut into smaller ones of the same type."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.v1.event_pb2 import EventInput
from ingest.v1.ingest_service_pb2 import StreamEventsRequest
from ingest_service.errors import FieldInvalid
from ingest_service.wire import cut

EVENTS = st.builds(EventInput, type=st.text(max_size=300), payload_json=st.text(max_size=10))
#: Fields that nobody knows: a varint, eight bytes, four bytes, and a text.
UNKNOWN = [b"\xf8\x01\x96\x01", b"\xf9\x01" + bytes(8), b"\xfd\x01" + bytes(4), b"\xfa\x01\x02ab"]


@given(st.lists(st.lists(EVENTS, max_size=6) | st.sampled_from(UNKNOWN)), st.integers(1, 5))
def test_the_pieces_are_the_message(parts: list[list[EventInput] | bytes], most: int) -> None:
    wire = b"".join(
        part if isinstance(part, bytes) else StreamEventsRequest(events=part).SerializeToString()
        for part in parts
    )
    pieces = list(cut(wire, most))

    assert b"".join(pieces) == wire
    parsed = [StreamEventsRequest.FromString(piece).events for piece in pieces]
    assert all(len(events) <= most for events in parsed)
    together = [event for events in parsed for event in events]
    assert together == list(StreamEventsRequest.FromString(wire).events)


@pytest.mark.parametrize(
    "broken",
    [
        b"\x0a",
        b"\x0a\x05ab",
        b"\xff" * 11,
        b"\x09\x00",
        b"\x0b\x0c",
        b"\x0f",
        b"\x0a\xff\xff\xff\xff\x0f",
    ],
    ids=["half", "short", "long varint", "half of eight bytes", "group", "kind 7", "4 GB"],
)
def test_what_is_broken_is_refused_after_what_came_before_it(broken: bytes) -> None:
    good = b"\x0a\x03\x0a\x01t"
    pieces = cut(good * 3 + broken, 2)

    assert next(pieces) == good * 2
    with pytest.raises(FieldInvalid):
        next(pieces)
