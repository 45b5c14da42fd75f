"""Bytes that are no message, messages that are no call, and calls with odd conditions."""

import gzip
import os
import zlib

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct, Value

from ingest.v1 import ingest_service_pb2 as pb
from ingest.v1.event_pb2 import EventInput
from tests.hostile.frames import connections, message
from tests.hostile.vitals import rss, watching_rss
from tests.kit.caller import Caller, event, refused
from tests.kit.server import Service
from tests.kit.waiting import eventually

#: 100 in the long form.
FACTOR = int(os.environ.get("HOSTILE_FACTOR", "1"))
BOMBS = min(1_000, 100 * FACTOR)
RESOURCE_EXHAUSTED = str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
UNARY = ("SubmitEvent", "BatchSubmitEvents", "GetEvent", "ListEvents", "GetEventCounts")
CORRUPT = {
    "truncated varint": b"\x0a\xff",
    "length beyond the end": b"\x0a\x7fabc",
    "varint without end": b"\xff" * 20,
    "field number zero": b"\x02\x01a",
    "wire type 6": b"\x0e\x00",
    "wire type 7": b"\x0f\x00",
    "group without end": b"\x0b",
    "group end alone": b"\x0c",
    "text": b"GET / HTTP/1.1\r\n",
    "json": b'{"event": {"type": "x"}}',
    "ones": b"\xff" * 100,
    "deep groups": b"\x0b" * 10_000,
}


@pytest.mark.parametrize("method", UNARY)
@pytest.mark.parametrize("name", CORRUPT)
def test_bytes_that_are_no_message_are_refused(alice: Caller, method: str, name: str) -> None:
    refusal = refused(alice.wire, method, CORRUPT[name])

    assert refusal.verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert refusal.text == "a field is not valid"


@pytest.mark.parametrize("name", CORRUPT)
def test_a_stream_ends_with_the_first_broken_message(alice: Caller, name: str) -> None:
    good = pb.StreamEventsRequest(events=[event("good")]).SerializeToString()

    refusal = refused(alice.wire_stream, [good, CORRUPT[name], good])

    assert refusal.verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert alice.counts().get("PENDING", 0) <= 1
    assert alice.is_served()


@pytest.mark.parametrize(
    "text", [b"\xff", b"\xc0\xae", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\x80"]
)
@pytest.mark.parametrize("field", [1, 2, 3, 4, 7])
def test_invalid_utf8_is_refused_in_every_text(alice: Caller, field: int, text: bytes) -> None:
    inner = bytes([field << 3 | 2, len(text)]) + text
    wire = b"\x0a" + bytes([len(inner)]) + inner

    assert refused(alice.wire, "SubmitEvent", wire).verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")


@pytest.mark.parametrize("levels", [60, 65, 3_000])
def test_a_struct_of_many_levels_is_refused(alice: Caller, levels: int) -> None:
    """Up to some thirty the parser goes; no payload is worth its stack."""
    wire = pb.SubmitEventRequest(event=event("deep")).SerializeToString()
    inside = field(EventInput.PAYLOAD_FIELD_NUMBER, struct_of(levels))
    refusal = refused(alice.wire, "SubmitEvent", wire + field(1, inside))

    assert refusal.verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert alice.counts() == {}
    assert alice.is_served()


def test_a_struct_of_some_levels_is_taken(alice: Caller) -> None:
    """The control of the test above: what it builds is a Struct, and only too deep."""
    wire = pb.SubmitEventRequest(event=event("deep")).SerializeToString()
    inside = field(EventInput.PAYLOAD_FIELD_NUMBER, struct_of(20))

    assert alice.wire("SubmitEvent", wire + field(1, inside))
    assert alice.counts() == {"PENDING": 1}


def struct_of(levels: int) -> bytes:
    """Return a Struct within a Struct, and so on, as protobuf writes it."""
    wire = b""
    for _ in range(levels - 1):
        value = field(Value.STRUCT_VALUE_FIELD_NUMBER, wire)
        wire = field(Struct.FIELDS_FIELD_NUMBER, field(1, b"a") + field(2, value))
    return wire


def field(number: int, content: bytes) -> bytes:
    """Return a field of bytes."""
    size, head = len(content), bytes([number << 3 | 2])
    while size >= 128:
        head += bytes([size & 127 | 128])
        size >>= 7
    return head + bytes([size]) + content


def test_unknown_fields_are_ignored(alice: Caller) -> None:
    known = pb.SubmitEventRequest(event=event("known")).SerializeToString()
    unknown = b"\xc2\x3e\xc0\x84\x3d" + b"x" * 1_000_000  # field 1000, one megabyte

    answer = pb.SubmitEventResponse.FromString(alice.wire("SubmitEvent", known + unknown))

    assert alice.get(answer.receipt.event_id).type == "known"


def test_a_request_of_no_bytes_lacks_its_fields(alice: Caller) -> None:
    assert refused(alice.wire, "SubmitEvent", b"").fields.keys() == {"event"}
    assert refused(alice.wire, "BatchSubmitEvents", b"").fields.keys() == {"events"}
    assert refused(alice.wire, "GetEvent", b"").fields.keys() == {"lookup"}
    assert alice.wire("ListEvents", b"") == b""


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_message_beyond_four_mebibytes_is_refused_however_it_is_packed(
    alice: Caller, compression: grpc.Compression | None
) -> None:
    for size in (4 << 20, 32 << 20):
        bomb = b"\xc2\x3e" + bytes(size)
        refusal = refused(alice.wire, "SubmitEvent", bomb, compression=compression)
        assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert alice.is_served()


def test_compression_is_understood(alice: Caller) -> None:
    wire = pb.SubmitEventRequest(event=event(payload={"a": "x" * 10_000})).SerializeToString()

    assert len(gzip.compress(wire)) < 500
    assert alice.wire("SubmitEvent", wire, compression=grpc.Compression.Gzip)


def test_many_small_bombs_leave_the_server_as_it_was(service: Service, alice: Caller) -> None:
    """A thousand in the long form; each is 8 kB on the wire and 8 MB unpacked."""
    bomb = message(packed_zeros(8), compressed=True)

    def explode(count: int) -> set[str]:
        with connections(service.port, 1) as (connection,):
            streams = {
                connection.open("SubmitEvent", alice, bomb, end=True, grpc_encoding="gzip")
                for _ in range(count)
            }
            eventually(lambda: connection.ended().keys() >= streams, timeout=30)
            return {*connection.ended().values()} - {""}

    explode(4)
    before = rss(service)
    for _ in range(BOMBS // 4):
        assert explode(4) == {RESOURCE_EXHAUSTED}
    assert rss(service) - before <= 20 << 20
    assert alice.is_served()


def test_a_large_bomb_is_refused_before_it_is_unpacked(service: Service, alice: Caller) -> None:
    """300 MB in the long form; never more of it than the limit is in memory."""
    bomb = bytes(min(300, 100 * FACTOR) << 20)
    assert alice.is_served()
    before = rss(service)
    with watching_rss(service) as memory:
        refusal = refused(alice.wire, "SubmitEvent", bomb, compression=grpc.Compression.Gzip)

    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert max(memory) - before <= 20 << 20
    assert alice.is_served()


def packed_zeros(megabytes: int) -> bytes:
    """Return so many zeros behind gzip."""
    packer = zlib.compressobj(wbits=31)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()


def test_refused_messages_of_very_many_events_are_forgotten_at_once(
    service: Service, alice: Caller
) -> None:
    """Python's collector of cycles knows nothing of their memory: each takes four megabytes."""
    many = pb.SubmitEventRequest(event=event("", payload="x" * 4_000_000)).SerializeToString()
    before = rss(service)
    for _ in range(100):
        refusal = refused(alice.wire, "BatchSubmitEvents", b"\x0a\x00" * 32_000)
        assert refusal.fields.keys() == {"events"}
    for _ in range(100):
        refusal = refused(alice.wire, "SubmitEvent", many)
        assert refusal.fields.keys() == {"event.type"}
    for _ in range(100):
        refusal = refused(alice.wire, "SubmitEvent", many[:-1])
        assert refusal.fields.keys() == {""}
    assert rss(service) - before < 200 << 20


@pytest.mark.parametrize("count", [0, 1, 1_000, 1_001, 1_099, 1_100, 1_101, 500_000])
def test_a_batch_holds_one_to_a_thousand_events_however_it_is_counted(
    alice: Caller, count: int
) -> None:
    """A large one is counted on the wire, before it is parsed."""
    small = EventInput(type="counted", payload_json='"' + "x" * (80_000 // (count or 1)) + '"')
    one = pb.BatchSubmitEventsRequest(events=[small]).SerializeToString()
    wire = one * count if count <= 2_000 else b"\x0a\x00" * count

    if 1 <= count <= 1_000:
        answer = pb.BatchSubmitEventsResponse.FromString(alice.wire("BatchSubmitEvents", wire))
        assert [receipt.index for receipt in answer.receipts] == list(range(count))
    else:
        refusal = refused(alice.wire, "BatchSubmitEvents", wire)
        assert refusal.fields == {"events": "must hold 1 to 1000 events"}


def test_a_large_batch_that_breaks_off_is_refused_as_such(alice: Caller) -> None:
    one = pb.BatchSubmitEventsRequest(events=[event(payload="x" * 200)]).SerializeToString()
    refusal = refused(alice.wire, "BatchSubmitEvents", (one * 900)[:-1])

    assert refusal.fields.keys() == {""}


@pytest.mark.parametrize("size", [12_000, 100_000])
def test_metadata_that_is_too_large_is_always_refused(alice: Caller, size: int) -> None:
    """Never at random: the soft limit and the hard one are equal."""
    alice.metadata += (("x-large", "x" * size),)

    for _ in range(10):
        assert refused(alice.submit, event()).code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_metadata_below_the_limit_is_always_taken(alice: Caller) -> None:
    """The limit is of 8 KiB; between a lower soft one and it, calls were refused at random."""
    alice.metadata += (("x-padding", "x" * (6_900 - len(alice.token))),)

    for _ in range(200):
        assert alice.counts() == {}


def test_metadata_of_a_thousand_names_is_refused(alice: Caller) -> None:
    alice.metadata += tuple((f"x-{number}", "x" * 10) for number in range(1_000))

    assert refused(alice.submit, event()).code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "method",
    [
        *("/ingest.v1.IngestService/Nothing", "/ingest.v1.IngestService/submitevent", "/x", "//"),
        *("/ingest.v2.IngestService/SubmitEvent", "/ingest.v1.IngestService/SubmitEvent/x", "/"),
        *("/ingest.v1.IngestService//SubmitEvent", "/ingest.v1.IngestService/", "/a/b/c/d"),
    ],
)
@pytest.mark.parametrize("authenticated", [True, False])
def test_a_method_that_is_not_here_is_unimplemented(
    service: Service, method: str, authenticated: bool
) -> None:
    caller = service.caller() if authenticated else service.nobody()
    call = service.channel.unary_unary(method, _same, _same)

    refusal = refused(call, b"", metadata=caller.metadata, timeout=5)

    assert refusal.code in {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED}
    assert not authenticated or refusal.code is grpc.StatusCode.UNIMPLEMENTED


def _same(wire: bytes) -> bytes:
    return wire


@pytest.mark.parametrize("timeout", [0.0, 0.001, 0.02])
def test_without_time_left_nothing_is_begun(alice: Caller, timeout: float) -> None:
    refusal = refused(alice.submit, event(), timeout=timeout)

    assert refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert alice.counts() == {}


def test_five_hundred_cancelled_streams_leave_the_server_well(service: Service) -> None:
    alice, before = service.caller(), rss(service)
    message = pb.StreamEventsRequest(events=[event()])
    for _ in range(500):
        stream = alice.stub.StreamEvents.future(iter([message]), metadata=alice.metadata)
        stream.cancel()

    def is_served_again() -> bool:
        try:
            return alice.is_served()
        except grpc.RpcError as error:
            # The limit of open calls on a connection, while the last ones are being ended.
            assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017  # or it was answered
            return False

    eventually(is_served_again, timeout=10)
    assert rss(service) - before < 60 << 20


def test_thousands_of_refused_calls_leave_nothing(service: Service, alice: Caller) -> None:
    """Four kB for each of them would be seen; `staying_well` allows a hundred megabytes."""
    nobody = service.nobody()

    def refuse(count: int) -> None:
        for _ in range(count):
            assert refused(alice.wire, "SubmitEvent", b"\xff").reason == "FIELD_INVALID"
            assert refused(nobody.submit, event()).reason == "TOKEN_MISSING"
            assert refused(alice.get, idempotency_key="nothing").reason == "EVENT_NOT_FOUND"

    refuse(200)
    before = rss(service)
    refuse(600)
    assert rss(service) - before <= 7 << 20
