"""A small ingestion service in memory that can be told how to misbehave."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from ingest.v1 import event_pb2, ingest_service_pb2, ingest_service_pb2_grpc


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A status to answer a call with, in place of its work or (`after`) when that is done."""

    code: grpc.StatusCode
    reason: str = ""
    retry_delay: float | None = None
    violations: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    after: bool = False
    #: Sent in place of the details when given.
    garbage: bytes = b""

    def abort(self, context: grpc.ServicerContext) -> None:
        if self.garbage:
            context.set_trailing_metadata((("grpc-status-details-bin", self.garbage),))
            context.abort(self.code, "a text")
        details: list[Message] = []
        if self.reason:
            details.append(
                error_details_pb2.ErrorInfo(
                    reason=self.reason, domain="ingest", metadata=self.metadata
                )
            )
        if self.retry_delay is not None:
            delay = Duration(nanos=int(self.retry_delay * 1e9))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        if self.violations:
            details.append(
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(field=path, description=text)
                        for path, text in self.violations.items()
                    ]
                )
            )
        packed = [Any() for _ in details]
        for slot, detail in zip(packed, details, strict=True):
            slot.Pack(detail)
        status = status_pb2.Status(code=self.code.value[0], message="a text", details=packed)
        context.abort_with_status(rpc_status.to_status(status))


class FakeService(ingest_service_pb2_grpc.IngestServiceServicer):
    """Stores events by idempotency key; an event without a type is rejected."""

    def __init__(self) -> None:
        self.target = ""
        #: What becomes of the next calls, in order; None is a call that goes well.
        self.failures: deque[Failure | None] = deque()
        #: Name of each call made, and the token it came with.
        self.calls: list[str] = []
        self.tokens: list[str] = []
        #: Events of each stream, as far as it was read.
        self.streams: list[int] = []
        #: How many events a stream takes before it is ended early.
        self.take: deque[int] = deque()
        #: How many times GetEvent still answers PENDING.
        self.looks_pending = 0
        self.final_status = event_pb2.EVENT_STATUS_PROCESSED
        self.released = threading.Event()
        self.hang = False
        self.events: dict[str, event_pb2.Event] = {}

    def SubmitEvent(  # noqa: N802  # gRPC's name
        self, request: ingest_service_pb2.SubmitEventRequest, context: grpc.ServicerContext
    ) -> ingest_service_pb2.SubmitEventResponse:
        with self._call("SubmitEvent", context):
            answer = self._take_all([request.event])
        return ingest_service_pb2.SubmitEventResponse(receipt=answer.receipts[0])

    def BatchSubmitEvents(  # noqa: N802
        self, request: ingest_service_pb2.BatchSubmitEventsRequest, context: grpc.ServicerContext
    ) -> ingest_service_pb2.BatchSubmitEventsResponse:
        with self._call("BatchSubmitEvents", context):
            answer = self._take_all(request.events)
        return ingest_service_pb2.BatchSubmitEventsResponse(receipts=answer.receipts)

    def StreamEvents(  # noqa: N802
        self,
        request_iterator: Iterator[ingest_service_pb2.StreamEventsRequest],
        context: grpc.ServicerContext,
    ) -> ingest_service_pb2.StreamEventsResponse:
        with self._call("StreamEvents", context):
            limit = self.take.popleft() if self.take else None
            events: list[event_pb2.EventInput] = []
            for request in request_iterator:
                events += request.events
                if limit is not None and len(events) >= limit:
                    break
            answer = self._take_all(events[:limit])
            self.streams.append(len(events))
        return answer

    def GetEvent(  # noqa: N802
        self, request: ingest_service_pb2.GetEventRequest, context: grpc.ServicerContext
    ) -> ingest_service_pb2.GetEventResponse:
        with self._call("GetEvent", context):
            for event in self.events.values():
                if request.idempotency_key:
                    found = event.idempotency_key == request.idempotency_key
                else:
                    found = event.event_id == request.event_id
                if found:
                    return ingest_service_pb2.GetEventResponse(event=self._look(event))
            reason = Failure(code=grpc.StatusCode.NOT_FOUND, reason="EVENT_NOT_FOUND")
            reason.abort(context)
        raise AssertionError

    def ListEvents(  # noqa: N802
        self, request: ingest_service_pb2.ListEventsRequest, context: grpc.ServicerContext
    ) -> ingest_service_pb2.ListEventsResponse:
        with self._call("ListEvents", context):
            size = request.page_size or 50
            wanted = [e for e in self.events.values() if request.type in ("", e.type)]
            wanted.reverse()
            start = int(request.page_token or 0)
            following = str(start + size) if start + size < len(wanted) else ""
        return ingest_service_pb2.ListEventsResponse(
            events=map(self._look, wanted[start : start + size]), next_page_token=following
        )

    def GetEventCounts(  # noqa: N802
        self, request: ingest_service_pb2.GetEventCountsRequest, context: grpc.ServicerContext
    ) -> ingest_service_pb2.GetEventCountsResponse:
        with self._call("GetEventCounts", context):
            count = ingest_service_pb2.StatusCount(status=self.final_status, count=len(self.events))
        return ingest_service_pb2.GetEventCountsResponse(counts=[count])

    @contextmanager
    def _call(self, name: str, context: grpc.ServicerContext) -> Iterator[None]:
        self.calls.append(name)
        metadata = dict(context.invocation_metadata())
        self.tokens.append(str(metadata["authorization"]).removeprefix("Bearer "))
        if self.hang:
            self.released.wait()
        failure = self.failures.popleft() if self.failures else None
        if failure and not failure.after:
            failure.abort(context)
        yield
        if failure:
            failure.abort(context)

    def _take_all(
        self, events: Iterable[event_pb2.EventInput]
    ) -> ingest_service_pb2.StreamEventsResponse:
        answer = ingest_service_pb2.StreamEventsResponse()
        for index, event in enumerate(events):
            answer.received += 1
            if not event.type:
                violation = event_pb2.FieldViolation(
                    field=f"events[{index}].type", description="1 to 255 bytes"
                )
                answer.rejections.add(
                    index=index, reason="FIELD_INVALID", field_violations=[violation]
                )
                answer.rejected += 1
                continue
            assert event.idempotency_key, "every submit carries a key"
            known = self.events.get(event.idempotency_key)
            stored = known or event_pb2.Event(
                event_id=f"event-{len(self.events)}",
                type=event.type,
                source=event.source,
                idempotency_key=event.idempotency_key,
                payload_json=event.payload_json,
                occurred_at=event.occurred_at,
                attributes=event.attributes,
            )
            self.events[event.idempotency_key] = stored
            answer.duplicates += known is not None
            answer.accepted += known is None
            answer.receipts.add(
                event_id=stored.event_id,
                duplicate=known is not None,
                status=event_pb2.EVENT_STATUS_PENDING,
                index=index,
            )
        return answer

    def _look(self, stored: event_pb2.Event) -> event_pb2.Event:
        event = event_pb2.Event()
        event.CopyFrom(stored)
        event.status = self.final_status
        if self.looks_pending:
            self.looks_pending -= 1
            event.status = event_pb2.EVENT_STATUS_PENDING
        event.processed = event.status == event_pb2.EVENT_STATUS_PROCESSED
        return event


@contextmanager
def serving(
    service: FakeService, credentials: Callable[[], grpc.ServerCredentials] | None = None
) -> Iterator[FakeService]:
    """Serve on a free port of this machine, with TLS when credentials are given."""
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        ingest_service_pb2_grpc.add_IngestServiceServicer_to_server(service, server)
        if credentials:
            port = server.add_secure_port("127.0.0.1:0", credentials())
        else:
            port = server.add_insecure_port("127.0.0.1:0")
        service.target = f"127.0.0.1:{port}"
        server.start()
        try:
            yield service
        finally:
            service.released.set()
            server.stop(None).wait()
