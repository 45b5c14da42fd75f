"""Ten thousand spoilt messages, half of them for each database, and events made up by Hypothesis.

What the wire must mean is asked of protobuf itself: what it cannot parse is INVALID_ARGUMENT, and
of what it can parse every event is counted.
"""

import json
import os
import random
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.v1 import ingest_service_pb2 as pb
from ingest.v1.event_pb2 import EVENT_STATUS_PENDING, PAYLOAD_FORMAT_JSON, EventInput
from tests.hostile.json_texts import same
from tests.kit.caller import event, refusal_of
from tests.kit.server import Service

#: 100 in the long form.
FACTOR = int(os.environ.get("HOSTILE_FACTOR", "1"))
SEEDS = range(1, 5 * FACTOR + 1)
#: Cases of each seed: five thousand for each database.
CALLS, STREAMS = 800, 200
CALLS_UNDER_WAY, STREAMS_UNDER_WAY = 80, 20

REQUESTS: dict[str, type[Message]] = {
    "SubmitEvent": pb.SubmitEventRequest,
    "BatchSubmitEvents": pb.BatchSubmitEventsRequest,
    "GetEvent": pb.GetEventRequest,
    "ListEvents": pb.ListEventsRequest,
    "GetEventCounts": pb.GetEventCountsRequest,
}
#: What may be said of a message that can be parsed.
REFUSED = {"FIELD_INVALID", "EVENT_NOT_FOUND", "IDEMPOTENCY_CONFLICT"}


def seeds() -> dict[str, list[bytes]]:
    """Good requests of every method, to be spoilt."""
    rich = event("t", source="s", idempotency_key="k", attributes={"a": "b"}, payload={"a": [1]})
    struct = EventInput(type="t")
    struct.payload.fields["a"].list_value.values.add().number_value = 1
    struct.occurred_at.GetCurrentTime()
    good: dict[str, list[Message]] = {
        "SubmitEvent": [pb.SubmitEventRequest(event=one) for one in (rich, struct)],
        "BatchSubmitEvents": [pb.BatchSubmitEventsRequest(events=[rich, struct])],
        "GetEvent": [
            pb.GetEventRequest(event_id="01980000-0000-7000-8000-000000000001"),
            pb.GetEventRequest(idempotency_key="k", payload_format=PAYLOAD_FORMAT_JSON),
        ],
        "ListEvents": [
            pb.ListEventsRequest(
                page_size=5,
                status=EVENT_STATUS_PENDING,
                type="t",
                received_after=struct.occurred_at,
            )
        ],
        "GetEventCounts": [pb.GetEventCountsRequest(received_before=struct.occurred_at)],
        "StreamEvents": [
            *(pb.StreamEventsRequest(events=[one]) for one in (rich, struct, event("x"))),
            pb.StreamEventsRequest(events=[rich, struct, event("")]),
        ],
    }
    return {name: [one.SerializeToString() for one in them] for name, them in good.items()}


def mutate(wire: bytes, rng: random.Random) -> bytes:
    """Return a message with one to four changes: bits, bytes, holes, insertions, repetitions."""
    spoilt = bytearray(wire)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(spoilt) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(spoilt):
            spoilt[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(spoilt):
            spoilt[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            spoilt[at:at] = rng.randbytes(rng.randint(1, 6))
        elif kind == 3:
            del spoilt[at : at + rng.randint(1, 8)]
        else:
            spoilt[at:at] = spoilt[: rng.randint(1, 20)]
    return bytes(spoilt)


def parsed(cls: type[Message], wire: bytes) -> Any:
    """Return the message, or None when it is none."""
    try:
        return cls.FromString(wire)
    except DecodeError:
        return None


@pytest.mark.parametrize("seed", SEEDS)
def test_spoilt_calls_are_answered_or_refused(service: Service, seed: int) -> None:
    alice, rng, good = service.caller(), random.Random(seed), seeds()  # noqa: S311
    calls = {
        name: service.channel.unary_unary(f"/ingest.v1.IngestService/{name}", _same, _same)
        for name in REQUESTS
    }
    for _ in range(CALLS // CALLS_UNDER_WAY):
        under_way = []
        for name in rng.choices([*REQUESTS], weights=(4, 3, 1, 1, 1), k=CALLS_UNDER_WAY):
            wire = mutate(rng.choice(good[name]), rng)
            call = calls[name].future(wire, metadata=alice.metadata, timeout=30)
            under_way.append((name, wire, call))
        for name, wire, call in under_way:
            error = call.exception()
            refusal = refusal_of(error) if isinstance(error, grpc.RpcError) else None
            if parsed(REQUESTS[name], wire) is None:
                assert refusal is not None, (name, wire)
                assert refusal.verdict == ("INVALID_ARGUMENT", "FIELD_INVALID"), (name, wire)
            else:
                assert refusal is None or refusal.reason in REFUSED, (name, wire, refusal)


@pytest.mark.parametrize("seed", SEEDS)
def test_spoilt_messages_in_a_stream_end_it_or_are_counted(service: Service, seed: int) -> None:
    """Wherever in the stream they stand, and whatever the server makes of several at once."""
    alice, rng, good = service.caller(), random.Random(seed), seeds()["StreamEvents"]  # noqa: S311
    method = service.channel.stream_unary("/ingest.v1.IngestService/StreamEvents", _same, _same)
    for _ in range(STREAMS // STREAMS_UNDER_WAY):
        under_way = []
        for _ in range(STREAMS_UNDER_WAY):
            wires = [rng.choice(good) for _ in range(rng.randint(0, 5))]
            wires.insert(rng.randint(0, len(wires)), mutate(rng.choice(good), rng))
            call = method.future(iter(wires), metadata=alice.metadata, timeout=30)
            under_way.append((wires, call))
        for wires, call in under_way:
            check_stream(wires, call)


def check_stream(wires: Sequence[bytes], call: Any) -> None:
    """Compare what a stream was answered with what its messages are."""
    messages = [parsed(pb.StreamEventsRequest, wire) for wire in wires]
    error = call.exception()
    if None in messages:
        assert isinstance(error, grpc.RpcError), wires
        assert refusal_of(error).verdict == ("INVALID_ARGUMENT", "FIELD_INVALID"), wires
        return
    assert error is None, (wires, error)
    summary = pb.StreamEventsResponse.FromString(call.result())
    assert summary.received == sum(len(one.events) for one in messages), wires
    assert summary.received == summary.accepted + summary.duplicates + summary.rejected
    assert {one.reason for one in summary.rejections} <= REFUSED


#: What PostgreSQL and JSON can hold: everything but U+0000 and halves of a pair.
written = st.characters(codec="utf-8", exclude_characters="\0")
short = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=60)
decimals = st.floats(-1e15, 1e15).map(lambda number: round(number, 6))


def values(numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """JSON values with these numbers."""
    return st.recursive(
        st.none() | st.booleans() | numbers | st.text(written, max_size=40),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.text(written, max_size=10), inner, max_size=4)
        ),
        max_leaves=12,
    )


@st.composite
def good_events(draw: st.DrawFn) -> tuple[EventInput, Any]:
    """Return an event that must be taken, and its payload."""
    made = EventInput(
        type=draw(short.filter(bool)),
        source=draw(short),
        subject=draw(short),
        attributes=draw(
            st.dictionaries(
                st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=16),
                st.text(written, max_size=200),
                max_size=5,
            )
        ),
    )
    if draw(st.booleans()):
        made.occurred_at.CopyFrom(
            draw(
                st.builds(
                    Timestamp,
                    seconds=st.integers(-62_135_596_800, 1_700_000_000),
                    nanos=st.integers(0, 999_999).map(lambda micros: micros * 1_000),
                )
            )
        )
    if draw(st.booleans()):
        payload = draw(values(decimals | st.integers(-(1 << 63), (1 << 64) - 1)))
        made.payload_json = json.dumps(
            payload, ensure_ascii=draw(st.booleans()), indent=draw(st.none() | st.just(1))
        )
    else:
        payload = draw(
            st.dictionaries(
                st.text(written, max_size=10),
                values(decimals | st.integers(-(1 << 53), 1 << 53)),
                max_size=4,
            )
        )
        made.payload.SetInParent()
        made.payload.update(payload)
    return made, payload


@settings(
    max_examples=40 * FACTOR,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(messages=st.lists(st.lists(good_events(), max_size=3), min_size=1, max_size=4))
def test_every_good_event_of_a_stream_is_stored_and_comes_back(
    service: Service, messages: list[list[tuple[EventInput, Any]]]
) -> None:
    somebody = service.caller()
    sent = [one for message in messages for one in message]

    summary = somebody.stream([made for made, _ in message] for message in messages)

    assert (summary.received, summary.accepted) == (len(sent), len(sent)), summary.rejections
    for (made, payload), receipt in zip(sent, summary.receipts, strict=True):
        stored = somebody.get(receipt.event_id, payload_format=PAYLOAD_FORMAT_JSON)
        assert (stored.type, stored.source, stored.subject) == (
            made.type,
            made.source,
            made.subject,
        )
        assert stored.attributes == made.attributes
        assert stored.occurred_at == (
            made.occurred_at if made.HasField("occurred_at") else receipt.received_at
        )
        assert same(json.loads(stored.payload_json), payload)


def _same(wire: bytes) -> bytes:
    return wire
