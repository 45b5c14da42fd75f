"""What a refusal tells: a code of the table and a fixed text, and nothing of what is behind it."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import grpc
import pytest
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import text, update

from eventstore.schema import events
from ingest.v1 import event_pb2
from ingest.v1 import ingest_service_pb2 as pb
from tests.hostile.bad_tokens import bad_tokens, hs256
from tests.hostile.json_texts import MALFORMED
from tests.hostile.test_fields import CONTROLS, STRINGS
from tests.hostile.test_wire import CORRUPT, UNARY
from tests.kit.caller import LEAKS, Caller, event
from tests.kit.databases import close_database
from tests.kit.server import Service, closing_engine, record, running, settings_for
from tests.kit.tokens import SECRET

#: The status table: what a caller may hear at all.
CODES = {
    *("INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "ALREADY_EXISTS", "NOT_FOUND"),
    *("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"),
}
#: The texts of our own refusals; gRPC's core words the rest.
TEXTS = {
    "a field is not valid",
    "authentication failed",
    "the token lacks a scope",
    "the idempotency key is taken by an event with other content",
    "event not found",
    "storage is unavailable; whether the call took effect is unknown",
    "too little time is left",
}
CORE = {"UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
#: What describes a place, a machine, a version or a line of code, beside LEAKS.
INSIDES = re.compile(
    r"line \d+|0x[0-9a-f]{6}|Error\b|Exception|grpc[-_ ]?(python|c)\b|grpcio|python|linux|localhost"
    r"|\bcolumn\b|\btable\b|\brelation\b|\bconstraint\b|\bLINE \d|DETAIL:|uvloop|asyncio"
    r"|site-packages"
    r"|/home|/root|/usr|/opt|/etc|/work|partition|users_pkey|events_",
    re.IGNORECASE,
)

Call: TypeAlias = "Callable[[], object]"


def insides(error: grpc.RpcError) -> tuple[str, str, str]:
    """Return code, text, and everything that was said, metadata and details spelt out."""
    call = cast("grpc.Call", error)
    code, told = call.code().name, call.details() or ""
    said = [told]
    for name, value in (*(call.initial_metadata() or ()), *(call.trailing_metadata() or ())):
        said.append(f"{name}: {value!r}")
        if name == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(cast("bytes", value))
            said.append(str(status))
            assert status.message == told
    return code, told, "\n".join(said)


def check_each(calls: Iterator[tuple[str, Call]], *, least: int) -> None:
    """Make all calls; each refusal must be of the table, and say nothing else."""
    refused = 0
    for name, call in calls:
        try:
            call()
        except grpc.RpcError as error:
            code, told, said = insides(error)
            refused += 1
            assert code in CODES, (name, said)
            assert told in TEXTS or code in CORE, (name, said)
            # A type URL is no address.
            said = said.replace("type.googleapis.com/", "")
            assert not LEAKS.search(said), (name, said)
            assert not INSIDES.search(said), (name, said)
            assert len(told) <= 200, (name, said)
    assert refused >= least


def bad_calls(  # noqa: C901  # a table, in loops
    service: Service, alice: Caller
) -> Iterator[tuple[str, Call]]:
    """Yield a broad choice of everything that should be refused."""
    for name, token in bad_tokens("HS256", hs256(SECRET.encode())):
        stranger = Caller(service.channel, token)
        yield f"token: {name}", partial(stranger.submit, event())
    for method in UNARY:
        for name, wire in CORRUPT.items():
            yield f"{method}: {name}", partial(alice.wire, method, wire)
    for name, wire in CORRUPT.items():
        yield f"stream: {name}", partial(alice.wire_stream, [wire])
    for control in CONTROLS:
        for field in ("source", "subject", "idempotency_key"):
            bad = event(**{field: f"a{control}"})
            yield f"{field}: {control!r}", partial(alice.submit, bad)
    for json_text in MALFORMED:
        bad = event(payload_json=json_text)
        yield f"json: {json_text[:20]!r}", partial(alice.submit, bad)
    for string in STRINGS:
        yield f"id: {string!r}", partial(alice.get, string)
        yield f"key: {string!r}", partial(alice.get, idempotency_key=string)
        yield f"page: {string!r}", partial(alice.list, page_token=string)
    for number in (-1, 10**6, -(2**31), 2**31 - 1):
        yield f"size {number}", partial(alice.list, page_size=number)
        yield f"status {number}", partial(alice.list, status=number)
        yield (
            f"format {number}",
            partial(alice.get, idempotency_key="k", payload_format=number),
        )
    yield "too much", lambda: alice.wire("SubmitEvent", bytes(5 << 20))
    yield (
        "a bomb",
        lambda: alice.wire("SubmitEvent", bytes(32 << 20), compression=grpc.Compression.Gzip),
    )
    yield "no time", lambda: alice.submit(event(), timeout=0.01)
    yield "no scope", lambda: service.caller(scope="").submit(event())
    alice.submit(event(idempotency_key="taken", payload=1))
    yield "conflict", lambda: alice.submit(event(idempotency_key="taken", payload=2))
    yield "conflict", lambda: alice.batch([event(idempotency_key="taken", payload=3)])
    for method in ("/ingest.v1.IngestService/Nothing", "/grpc.channelz.v1.Channelz/GetServers"):
        yield method, partial(bytes_call, alice, method)


def bytes_call(caller: Caller, method: str) -> bytes:
    call: Any = caller.channel.unary_unary(method, bytes, bytes)
    answer: bytes = call(b"", metadata=caller.metadata, timeout=5)
    return answer


def test_no_refusal_says_more_than_the_table(service: Service, alice: Caller) -> None:
    check_each(bad_calls(service, alice), least=700)
    assert service.process.returncode is None
    assert alice.is_served()


def test_no_reason_for_an_event_says_more_than_what_is_allowed(
    service: Service, alice: Caller
) -> None:
    """In the summary of a stream, and in what is kept with an event."""
    summary = alice.stream(
        [
            [event(payload_json=text) for text in MALFORMED],
            [event(f"a{control}") for control in CONTROLS],
        ]
    )
    assert summary.rejected == len(MALFORMED) + len(CONTROLS)
    deep = '{"a":' * 11 + "1" + "}" * 11
    alice.batch([event(payload=[1]), event(payload_json=deep), event(payload={"page": {"x": 1}})])
    service.process_all(alice)
    stored = [alice.get(one.event_id) for one in alice.list().events]
    said = str(summary.rejections) + "".join(
        f"{one.processing_error} {one.properties['warnings'] if one.processed else ''}\n"
        for one in stored
    )

    assert {one.status for one in stored} == {
        event_pb2.EVENT_STATUS_PROCESSED,
        event_pb2.EVENT_STATUS_INVALID,
    }
    assert not LEAKS.search(said)
    assert not INSIDES.search(said)


EACH: dict[str, Callable[[Caller], object]] = {
    "SubmitEvent": lambda caller: caller.submit(event()),
    "BatchSubmitEvents": lambda caller: caller.batch([event()]),
    "StreamEvents": lambda caller: caller.stream([[event()]]),
    "GetEvent": lambda caller: caller.get(idempotency_key="k"),
    "ListEvents": lambda caller: caller.list(),
    "GetEventCounts": lambda caller: caller.counts(),
}


def test_a_database_that_is_away_is_not_described(
    database_url: str, postgres_url: str, broker_url: str, tmp_path: Path
) -> None:
    methods = pb.DESCRIPTOR.services_by_name["IngestService"].methods
    assert EACH.keys() == {method.name for method in methods}
    with running(tmp_path, settings_for(database_url, broker_url)) as server:
        alice = server.caller()
        assert alice.is_served()
        close_database(postgres_url, database_url)

        calls = ((name, partial(call, alice)) for name, call in EACH.items())
        check_each(calls, least=len(EACH))
        for call in EACH.values():
            with pytest.raises(grpc.RpcError) as caught:
                call(alice)
            assert insides(caught.value)[:2] == (
                "UNAVAILABLE",
                "storage is unavailable; whether the call took effect is unknown",
            )


@pytest.fixture
def own(store_url: str, redis_url: str, tmp_path: Path) -> Iterator[Service]:
    """A server of this test's own, which may log an error."""
    with running(tmp_path, settings_for(store_url, redis_url)) as started:
        yield started


def test_a_bug_tells_its_number_and_the_log_tells_the_rest(own: Service) -> None:
    """A row that somebody spoilt by hand: nobody foresaw it, and it is INTERNAL."""
    alice = own.caller()
    receipt = alice.submit(event(attributes={"a": "b"}))
    with closing_engine(own.database_url) as store, store.begin() as connection:
        connection.execute(
            update(events).where(events.c.id == receipt.event_id).values(attributes=text("'[1]'"))
        )

    with pytest.raises(grpc.RpcError) as caught:
        alice.get(receipt.event_id)
    code, told, said = insides(caught.value)
    number = told.removeprefix("internal error, request id ")

    assert code == "INTERNAL"
    assert re.fullmatch(r"[0-9a-f]{32}", number)
    assert "INTERNAL" in said
    said = said.replace("type.googleapis.com/", "")
    assert not LEAKS.search(said)
    assert not INSIDES.search(said.replace(told, ""))
    logged = record(own.process, "call_failed")
    assert logged is not None
    assert logged["request_id"] == number
    assert {"error", "at"} <= logged.keys()
    assert "Traceback" not in own.process.stderr()
    assert alice.is_served()


def test_health_shows_a_status_and_nothing_else(service: Service) -> None:
    """Neither version nor name nor host, to whoever asks without a token."""
    stub: Any = health_pb2_grpc.HealthStub(service.channel)
    answer, call = stub.Check.with_call(health_pb2.HealthCheckRequest(), timeout=5)

    assert list(health_pb2.HealthCheckResponse.DESCRIPTOR.fields_by_name) == ["status"]
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    metadata = [*(call.initial_metadata() or ()), *(call.trailing_metadata() or ())]
    assert metadata == []
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nothing"), timeout=5)
    code, told, said = insides(caught.value)
    assert (code, told) == ("NOT_FOUND", "")
    assert not INSIDES.search(said)
