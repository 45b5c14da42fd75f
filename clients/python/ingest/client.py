"""The client: one method for each question that one can ask the service.

Every call is safe to repeat, because reads change nothing and every submit carries an
idempotency key. So calls that fail for a passing reason are repeated, as `RetryPolicy` says.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import Self

from ingest import stream
from ingest.caller import Caller
from ingest.channel import TLS, open_channel
from ingest.errors import StillPending
from ingest.events import timestamp
from ingest.retry import RetryPolicy
from ingest.split import with_key
from ingest.v1.event_pb2 import (
    EVENT_STATUS_PENDING,
    EVENT_STATUS_UNSPECIFIED,
    PAYLOAD_FORMAT_JSON,
    Event,
    EventInput,
    EventReceipt,
    EventStatus,
    PayloadFormat,
)
from ingest.v1.ingest_service_pb2 import (
    BatchSubmitEventsRequest,
    GetEventCountsRequest,
    GetEventCountsResponse,
    GetEventRequest,
    ListEventsRequest,
    StreamEventsResponse,
    SubmitEventRequest,
)
from ingest.v1.ingest_service_pb2_grpc import IngestServiceStub

#: Seconds between the first two looks at an event that is waited for; processing takes about 10 ms.
_FIRST_PAUSE = 0.01
#: By how much the pause grows with each look ...
_GROWTH = 1.6
#: ... up to this many seconds.
_LONGEST_PAUSE = 1.0


class IngestClient:
    """A connection to the service for one caller; threads may share it.

    `token` is the caller's JWT, or a function that answers a current one and is asked before
    each attempt. `tls` None means plaintext to this machine and TLS with gRPC's built-in roots
    to any other; `TLS(...)` names own files; False is plaintext by explicit choice.

    Methods raise the errors of `ingest.errors`. `timeout` bounds a call with all its retries, in
    seconds; without it the policy alone does.
    """

    def __init__(
        self,
        target: str,
        token: str | Callable[[], str],
        *,
        tls: TLS | bool | None = None,
        policy: RetryPolicy | None = None,
    ) -> None:
        self._caller = Caller(token, policy or RetryPolicy())
        self._channel = open_channel(target, tls=tls)
        self._stub = IngestServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls of other threads fail."""
        self._caller.close()
        self._channel.close()

    def submit(self, event: EventInput, *, timeout: float | None = None) -> EventReceipt:
        """Submit one event; the receipt means that it is committed."""
        request = SubmitEventRequest(event=with_key(event))
        return self._caller.ask(self._stub.SubmitEvent, request, timeout).receipt

    def submit_batch(
        self, events: Iterable[EventInput], *, timeout: float | None = None
    ) -> Sequence[EventReceipt]:
        """Submit 1 to 1000 events, at most 4 MiB in all, in one transaction: all or none."""
        request = BatchSubmitEventsRequest(events=map(with_key, events))
        return self._caller.ask(self._stub.BatchSubmitEvents, request, timeout).receipts

    def submit_stream(self, events: Iterable[EventInput]) -> StreamEventsResponse:
        """Submit any number of events as `submit_calls` does, and sum the answers up.

        The counts are exact; the first 10,000 receipts and 1,000 rejections are kept.
        """
        total = StreamEventsResponse()
        for answer in stream.send(self._caller, self._stub.StreamEvents, events):
            stream.add_up(total, answer)
        return total

    def submit_calls(self, events: Iterable[EventInput]) -> Iterator[StreamEventsResponse]:
        """Submit any number of events by consecutive calls, and yield the answer of each.

        A call holds up to 10,000 events and 16 MiB, so its answer has every receipt. It is sent
        once so much is gathered or the events end: for a trickle of events use `submit`. A call
        that breaks is repeated whole; what its first attempt had stored then counts as
        duplicates. Positions (`index`) are counted through the whole iterable.

        Stopping early cancels the call under way; whether its events are stored is then unknown.
        """
        offset = 0
        for answer in stream.send(self._caller, self._stub.StreamEvents, events):
            stream.shift(answer, offset)
            offset += answer.received
            yield answer

    def get(
        self,
        event_id: str = "",
        *,
        idempotency_key: str = "",
        payload_format: PayloadFormat.ValueType = PAYLOAD_FORMAT_JSON,
        timeout: float | None = None,
    ) -> Event:
        """Answer one event, by its id or by its idempotency key."""
        if bool(event_id) == bool(idempotency_key):
            raise TypeError("give an event_id or an idempotency_key")
        request = GetEventRequest(payload_format=payload_format)
        if event_id:
            request.event_id = event_id
        else:
            request.idempotency_key = idempotency_key
        return self._caller.ask(self._stub.GetEvent, request, timeout).event

    def wait(
        self,
        event_id: str,
        timeout: float = 30.0,
        *,
        payload_format: PayloadFormat.ValueType = PAYLOAD_FORMAT_JSON,
    ) -> Event:
        """Answer an event once its status is final, looking ever more seldom.

        Raises:
            StillPending: it is not final after `timeout` seconds; there is at least one look.
            ValueError: `timeout` is no number.

        """
        if math.isnan(timeout):
            raise ValueError("timeout must be a number of seconds")
        deadline = time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while True:
            event = self.get(event_id, payload_format=payload_format)
            if event.status != EVENT_STATUS_PENDING:
                return event
            left = deadline - time.monotonic()
            if left <= 0:
                raise StillPending(f"{event_id} is still pending")
            self._caller.pause(min(pause, left))
            pause = min(pause * _GROWTH, _LONGEST_PAUSE)

    def list(
        self,
        *,
        status: EventStatus.ValueType = EVENT_STATUS_UNSPECIFIED,
        event_type: str = "",
        source: str = "",
        received_after: datetime | None = None,
        received_before: datetime | None = None,
        payload_format: PayloadFormat.ValueType = PAYLOAD_FORMAT_JSON,
        page_size: int = 0,
    ) -> Iterator[Event]:
        """Yield the caller's own events, newest first, and fetch each page when it is reached.

        `received_after` is included, `received_before` is not; both need a time zone.
        """
        request = ListEventsRequest(
            status=status,
            type=event_type,
            source=source,
            payload_format=payload_format,
            page_size=page_size,
        )
        if received_after is not None:
            request.received_after.CopyFrom(timestamp(received_after, "received_after"))
        if received_before is not None:
            request.received_before.CopyFrom(timestamp(received_before, "received_before"))
        while True:
            page = self._caller.ask(self._stub.ListEvents, request, None)
            yield from page.events
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def counts(self, *, timeout: float | None = None) -> GetEventCountsResponse:
        """Count the caller's own events by status."""
        return self._caller.ask(self._stub.GetEventCounts, GetEventCountsRequest(), timeout)
