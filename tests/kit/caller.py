"""Calls the service as a client does, and reads refusals as the contract words them."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast
from uuid import uuid4

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from ingest.v1 import event_pb2
from ingest.v1 import ingest_service_pb2 as pb
from ingest.v1.event_pb2 import EventInput
from ingest.v1.ingest_service_pb2_grpc import IngestServiceStub

#: What no client may ever read: library and table names, SQL, code, addresses.
LEAKS = re.compile(
    r"Traceback|psycopg|sqlalchemy|sqlite|redis|dramatiq|pydantic|orjson|\.py\b|File \""
    r"|SELECT |INSERT |UPDATE |DELETE FROM|COPY |idempotency_keys|postgres|//|127\.0\.0\.1|/tmp/",
    re.IGNORECASE,
)

_SERVICE = "/ingest.v1.IngestService/"
#: Seconds after which a call that hangs is a failure.
_DEADLINE = 20.0


class Refusal(NamedTuple):
    """A status with its details."""

    code: grpc.StatusCode
    text: str
    reason: str = ""
    metadata: Mapping[str, str] = {}
    #: Description by path of the field.
    fields: Mapping[str, str] = {}
    #: Description by subject.
    quotas: Mapping[str, str] = {}
    #: Seconds.
    retry_delay: float | None = None
    #: The status as it was on the wire.
    wire: bytes = b""

    @property
    def verdict(self) -> tuple[str, str]:
        """Code and reason by name."""
        return self.code.name, self.reason


def refusal_of(error: grpc.RpcError) -> Refusal:
    """Read a refusal; whatever it is, it must not be a bug's and must not leak."""
    call = cast("grpc.Call", error)
    code, text = call.code(), call.details() or ""
    assert code not in {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}, (code, text)
    assert not LEAKS.search(text), text
    status = rpc_status.from_call(call)
    if status is None:
        return Refusal(code, text)
    assert not LEAKS.search(str(status)), status
    assert len(text) <= 200
    found = Refusal(code, text, wire=status.SerializeToString(deterministic=True))
    for detail in status.details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        quota, retry = error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            assert info.domain == "ingest"
            found = found._replace(reason=info.reason, metadata=dict(info.metadata))
        elif detail.Unpack(bad):
            fields = {violation.field: violation.description for violation in bad.field_violations}
            found = found._replace(fields=fields)
        elif detail.Unpack(quota):
            limits = {violation.subject: violation.description for violation in quota.violations}
            found = found._replace(quotas=limits)
        elif detail.Unpack(retry):
            found = found._replace(retry_delay=retry.retry_delay.ToMicroseconds() / 1e6)
    return found


def refused(call: Callable[..., object], *args: Any, **kwargs: Any) -> Refusal:
    """Make a call that must be refused, and return how."""
    try:
        answer = call(*args, **kwargs)
    except grpc.RpcError as error:
        return refusal_of(error)
    raise AssertionError(f"not refused: {answer!r}")


def event(type_: str = "page.viewed", /, *, payload: Any = ..., **fields: Any) -> EventInput:
    """Return a good event; `payload` is any JSON value and goes as payload_json."""
    if payload is not ...:
        fields["payload_json"] = json.dumps(payload)
    return EventInput(type=type_, **fields)


def at(seconds: float) -> Timestamp:
    """Return a timestamp of so many seconds since 1970."""
    timestamp = Timestamp()
    timestamp.FromMicroseconds(int(seconds * 1_000_000))
    return timestamp


class Caller:
    """Somebody with a token, and a channel to the service."""

    def __init__(self, channel: grpc.Channel, token: str, subject: str = "") -> None:
        """Take the token; an empty one means a call without authorization."""
        self.subject = subject
        self.token = token
        self.channel = channel
        self.metadata: tuple[tuple[str, str], ...] = (
            (("authorization", f"Bearer {token}"),) if token else ()
        )
        self.stub = IngestServiceStub(channel)

    def submit(self, wanted: EventInput, timeout: float = _DEADLINE) -> event_pb2.EventReceipt:
        """Submit one event."""
        request = pb.SubmitEventRequest(event=wanted)
        return self.stub.SubmitEvent(request, metadata=self.metadata, timeout=timeout).receipt

    def batch(self, events: Iterable[EventInput]) -> Sequence[event_pb2.EventReceipt]:
        """Submit an atomic batch."""
        request = pb.BatchSubmitEventsRequest(events=events)
        answer = self.stub.BatchSubmitEvents(request, metadata=self.metadata, timeout=_DEADLINE)
        return answer.receipts

    def stream(
        self, messages: Iterable[Sequence[EventInput]], timeout: float = _DEADLINE
    ) -> pb.StreamEventsResponse:
        """Submit a stream of messages."""
        requests = (pb.StreamEventsRequest(events=events) for events in messages)
        return self.stub.StreamEvents(requests, metadata=self.metadata, timeout=timeout)

    def get(self, event_id: str = "", **fields: Any) -> event_pb2.Event:
        """Read one event, by id or by idempotency_key."""
        if event_id:
            fields["event_id"] = event_id
        request = pb.GetEventRequest(**fields)
        return self.stub.GetEvent(request, metadata=self.metadata, timeout=_DEADLINE).event

    def list(self, **fields: Any) -> pb.ListEventsResponse:
        """Read one page."""
        request = pb.ListEventsRequest(**fields)
        return self.stub.ListEvents(request, metadata=self.metadata, timeout=_DEADLINE)

    def pages(self, **fields: Any) -> Iterable[pb.ListEventsResponse]:
        """Read one page after another, to the last."""
        page = self.list(**fields)
        yield page
        while page.next_page_token:
            page = self.list(**fields, page_token=page.next_page_token)
            yield page

    def counts(self, **fields: Any) -> dict[str, int]:
        """Count events by the name of their status, without those that are zero."""
        request = pb.GetEventCountsRequest(**fields)
        answer = self.stub.GetEventCounts(request, metadata=self.metadata, timeout=_DEADLINE)
        names = {entry.status: entry.count for entry in answer.counts if entry.count}
        return {
            event_pb2.EventStatus.Name(status).removeprefix("EVENT_STATUS_"): count
            for status, count in names.items()
        }

    def wire(self, method: str, request: bytes, **options: Any) -> bytes:
        """Call a unary method with bytes of any kind."""
        call = self.channel.unary_unary(_SERVICE + method, _same, _same)
        answer: bytes = call(request, metadata=self.metadata, timeout=_DEADLINE, **options)
        return answer

    def wire_stream(self, requests: Iterable[bytes], timeout: float = _DEADLINE) -> bytes:
        """Call StreamEvents with messages of any kind."""
        call = self.channel.stream_unary(_SERVICE + "StreamEvents", _same, _same)
        answer: bytes = call(iter(requests), metadata=self.metadata, timeout=timeout)
        return answer

    def is_served(self) -> bool:
        """Whether a good submit is answered and can be read back."""
        receipt = self.submit(event(idempotency_key=uuid4().hex, payload={"good": True}))
        return self.get(receipt.event_id).type == "page.viewed"


def _same(wire: bytes) -> bytes:
    return wire
