"""Sending any number of events by consecutive StreamEvents calls, and adding up the answers."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import grpc

from ingest import split
from ingest.caller import Caller, translated_errors
from ingest.errors import Unavailable
from ingest.v1.event_pb2 import EventInput, EventReceipt, FieldViolation, Rejection
from ingest.v1.ingest_service_pb2 import StreamEventsRequest, StreamEventsResponse

#: Rejections that a sum keeps, as the server does.
REJECTIONS_PER_SUM = 1_000

# In quotes because gRPC's classes are generic for type checkers alone.
_Method: TypeAlias = "grpc.StreamUnaryMultiCallable[StreamEventsRequest, StreamEventsResponse]"


def send(
    caller: Caller, method: _Method, events: Iterable[EventInput]
) -> Iterator[StreamEventsResponse]:
    """Yield the answer of each call, with positions counted within that call.

    While one call is under way the events of the next are gathered.

    Raises:
        IngestError: a call failed for good; those before it are answered.

    """
    call: _Call | None = None
    try:
        for group in split.calls(events):
            answer = call.finish() if call else None
            call = _Call(caller, method, group)
            if answer:
                yield answer
        if call:
            yield call.finish()
    finally:
        if call:
            call.cancel()


class _Call:
    """The events of one call, on their way from the moment this is made."""

    def __init__(self, caller: Caller, method: _Method, events: Sequence[EventInput]) -> None:
        self._caller = caller
        self._method = method
        self._answer = StreamEventsResponse()
        self._rest = events
        if events[0].ByteSize() > split.LARGEST_EVENT:
            self._answer = _refusal()
            self._rest = ()
        self._under_way = self._start(caller.policy.stream_timeout) if self._rest else None

    def finish(self) -> StreamEventsResponse:
        """Wait until every event is answered: by one call, unless the server ends it early."""
        while self._rest:
            answer = self._caller.until_answered(
                self._attempt, self._caller.policy.stream_timeout, None
            )
            add_up(self._answer, answer)
            self._rest = self._rest[answer.received :]
        return self._answer

    def cancel(self) -> None:
        """Give up; what was stored is then unknown. Without effect once finished."""
        if self._under_way:
            self._under_way.cancel()

    def _start(self, seconds: float) -> "grpc.Future[StreamEventsResponse]":
        return self._method.future(
            split.messages(self._rest), timeout=seconds, metadata=self._caller.metadata()
        )

    def _attempt(self, seconds: float) -> StreamEventsResponse:
        """Wait for the attempt under way, or for a new one."""
        self._under_way = self._under_way or self._start(seconds)
        with translated_errors:
            try:
                answer = self._under_way.result()
            except grpc.RpcError:
                self._under_way = None
                raise
        self._under_way = None
        if not answer.received:
            raise Unavailable("the server ended the stream without taking an event")
        return answer


def add_up(total: StreamEventsResponse, answer: StreamEventsResponse) -> None:
    """Add an answer to the sum of those before it, within the bounds of a single answer.

    Positions are then counted through all of them.
    """
    shift(answer, total.received)
    total.received += answer.received
    total.accepted += answer.accepted
    total.duplicates += answer.duplicates
    total.rejected += answer.rejected
    room = split.EVENTS_PER_CALL - len(total.receipts)
    total.receipts_truncated |= answer.receipts_truncated or len(answer.receipts) > room
    total.receipts.extend(answer.receipts[:room])
    total.rejections.extend(answer.rejections[: REJECTIONS_PER_SUM - len(total.rejections)])


def shift(answer: StreamEventsResponse, offset: int) -> None:
    """Move every position in an answer."""
    entries: tuple[Iterable[EventReceipt | Rejection], ...] = (answer.receipts, answer.rejections)
    for entry in (entry for group in entries for entry in group):
        entry.index += offset


def _refusal() -> StreamEventsResponse:
    """Answer in the server's place for a call whose only event fits into no message."""
    violation = FieldViolation(
        field="events[0]", description=f"at most {split.LARGEST_EVENT} bytes"
    )
    rejection = Rejection(reason="FIELD_INVALID", field_violations=[violation])
    return StreamEventsResponse(received=1, rejected=1, rejections=[rejection])
