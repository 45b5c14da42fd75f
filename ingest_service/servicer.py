"""IngestService on the wire: translates, hands on, answers. No SQL, no tokens, no broker."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import structlog

from eventstore import reading
from eventstore.reading import NEWEST, Filters
from eventstore.settings import Settings
from eventstore.values import EventStatus, Submission
from ingest.v1 import event_pb2, ingest_service_pb2_grpc
from ingest.v1 import ingest_service_pb2 as pb
from ingest_service.answers import Context
from ingest_service.content import ContentReader
from ingest_service.decode import EventDecoder, check_text, decode_bound, decode_format
from ingest_service.encode import encode_receipts
from ingest_service.errors import (
    Draining,
    EventNotFound,
    FieldInvalid,
    Violation,
)
from ingest_service.idle import IdleWatch, idle_watch
from ingest_service.intake import Intake, raise_refusals
from ingest_service.limits import UserLimits
from ingest_service.offload import Offload
from ingest_service.pagetokens import make_page_token, read_page_token
from ingest_service.parse import parse_batch, parse_one
from ingest_service.principal import current_principal
from ingest_service.reader import Reader
from ingest_service.streaming import StreamIntake

log = structlog.get_logger()

MAX_PAGE_SIZE = 1_000
DEFAULT_PAGE_SIZE = 50
#: Bytes of a message from which on decoding could stop the event loop for too long: the slowest
#: messages take some 100 ms for each megabyte.
_LARGE = 64 << 10
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class IngestServicer(ingest_service_pb2_grpc.IngestServiceServicer):
    """Implements the calls; whoever calls is in `current_principal`."""

    def __init__(  # noqa: PLR0917  # each is another thing
        self,
        settings: Settings,
        intake: Intake,
        decoder: EventDecoder,
        reader: Reader,
        content: ContentReader,
        limits: UserLimits,
        offload: Offload,
    ) -> None:
        """Take collaborators."""
        self._settings = settings
        self._intake = intake
        self._decoder = decoder
        self._reader = reader
        self._content = content
        self._limits = limits
        self._offload = offload
        self._open: set[IdleWatch] = set()
        self._is_draining = False

    async def SubmitEvent(  # noqa: N802  # the names of calls are those of the contract
        self, request: Any, context: Context
    ) -> pb.SubmitEventResponse:
        """Store one event; the request is bytes still, see `_decoded`."""
        submission = await self._decoded(request, parse_one, "event")
        receipts = await self._store(submission, "event")
        return pb.SubmitEventResponse(receipt=receipts[0])

    async def BatchSubmitEvents(  # noqa: N802
        self, request: Any, context: Context
    ) -> pb.BatchSubmitEventsResponse:
        """Store all events or none; the request is bytes still, see `_decoded`."""
        submission = await self._decoded(request, parse_batch, "events[{}]")
        return pb.BatchSubmitEventsResponse(receipts=await self._store(submission, "events[{}]"))

    async def StreamEvents(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.StreamEventsRequest], context: Context
    ) -> pb.StreamEventsResponse:
        """Store the events of a stream as they come."""
        principal = current_principal.get()
        user_id = principal.user.id
        end = time.monotonic() + self._settings.stream_max_seconds
        stream = StreamIntake(
            self._intake, self._decoder, principal.user, self._limits, self._offload, ends_at=end
        )
        with self._limits.stream(user_id):
            try:
                async with self._watched() as idle:
                    while time.monotonic() < end:
                        if self._limits.is_full(user_id):
                            with idle.paused():
                                # What was taken is committed, or the stream fails, before it waits.
                                await stream.finish()
                                await self._limits.room(user_id, end, principal.require_alive)
                            continue
                        # From the context: the iterator is a generator around it, and costs more
                        # than all that is done here with a message.
                        wire = await context.read()
                        if wire is grpc.aio.EOF:
                            break
                        idle.note()
                        principal.require_alive()
                        self._limits.admit_message(user_id)
                        # Not reading is what slows the client down (HTTP/2 flow control).
                        if len(wire) > _LARGE:
                            with idle.paused():
                                await stream.take_large(wire)
                                await stream.wait()
                        elif stream.take(wire):
                            with idle.paused():
                                await stream.wait()
            except TimeoutError:
                await stream.finish()
                if self._is_draining:
                    raise Draining from None
                await context.abort(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    f"no message for {self._settings.stream_idle_seconds:g} seconds",
                )
            summary = await stream.finish()
        log.info(
            "stream_accepted",
            user_id=user_id,
            accepted=summary.accepted,
            duplicates=summary.duplicates,
            rejected=summary.rejected,
        )
        return summary

    async def GetEvent(  # noqa: N802
        self, request: pb.GetEventRequest, context: Context
    ) -> pb.GetEventResponse:
        """Answer one of the caller's events."""
        user_id = self._reading_user()
        lookup = request.WhichOneof("lookup")
        if lookup is None:
            raise FieldInvalid([Violation("lookup", "event_id or idempotency_key is required")])
        violations: list[Violation] = []
        payload_format = decode_format(request.payload_format, violations)
        if lookup == "idempotency_key":
            check_text("idempotency_key", request.idempotency_key, violations, required=True)
        elif not _UUID.fullmatch(request.event_id):
            violations.append(Violation("event_id", "must be a UUID in canonical form"))
        if violations:
            raise FieldInvalid(violations)
        event_id: str | None = request.event_id.lower()
        if lookup == "idempotency_key":
            event_id = await self._reader.read(
                user_id, reading.find_event_id, user_id, request.idempotency_key
            )
        if event_id is None:
            raise EventNotFound
        event = await self._content.event(context, user_id, event_id, payload_format)
        if event is None:
            raise EventNotFound
        return pb.GetEventResponse(event=event)

    async def ListEvents(  # noqa: N802
        self, request: pb.ListEventsRequest, context: Context
    ) -> pb.ListEventsResponse:
        """Answer a page of the caller's events."""
        user_id = self._reading_user()
        violations: list[Violation] = []
        if not 0 <= request.page_size <= MAX_PAGE_SIZE:
            violations.append(Violation("page_size", f"must be 0 to {MAX_PAGE_SIZE}"))
        if request.status not in event_pb2.EventStatus.values():
            violations.append(Violation("status", "must be a known EventStatus"))
        check_text("type", request.type, violations, required=False)
        check_text("source", request.source, violations, required=False)
        after = decode_bound(request, "received_after", violations)
        before = decode_bound(request, "received_before", violations)
        payload_format = decode_format(request.payload_format, violations)
        if violations:
            raise FieldInvalid(violations)
        filters = Filters(
            status=EventStatus(request.status) if request.status else None,
            type=request.type,
            source=request.source,
            received_after=after,
            received_before=before,
        )
        start = read_page_token(request.page_token, filters) if request.page_token else NEWEST
        events, cursor = await self._content.page(
            context,
            user_id,
            filters,
            payload_format,
            limit=request.page_size or DEFAULT_PAGE_SIZE,
            before=start,
        )
        return pb.ListEventsResponse(
            events=events,
            next_page_token=make_page_token(cursor, filters) if cursor else "",
        )

    async def GetEventCounts(  # noqa: N802
        self, request: pb.GetEventCountsRequest, context: Context
    ) -> pb.GetEventCountsResponse:
        """Count the caller's events by status."""
        user_id = self._reading_user()
        violations: list[Violation] = []
        filters = Filters(
            received_after=decode_bound(request, "received_after", violations),
            received_before=decode_bound(request, "received_before", violations),
        )
        if violations:
            raise FieldInvalid(violations)
        counts, truncated = await self._reader.read(user_id, reading.count_events, user_id, filters)
        return pb.GetEventCountsResponse(
            counts=[
                pb.StatusCount(status=event_pb2.EventStatus.ValueType(int(status)), count=count)
                for status, count in counts.items()
            ],
            truncated=truncated,
        )

    def end_streams(self) -> None:
        """End open streams with DRAINING, after what they sent is committed; take no new ones."""
        self._is_draining = True
        for watch in self._open:
            watch.expire()

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[IdleWatch]:
        """Raise TimeoutError in the body when the client is quiet, or the server must end."""
        if self._is_draining:
            raise Draining
        async with idle_watch(self._settings.stream_idle_seconds) as watch:
            self._open.add(watch)
            try:
                yield watch
            finally:
                self._open.remove(watch)

    def _reading_user(self) -> str:
        """Return the caller's id; raises RateLimited when it reads too much."""
        user_id = current_principal.get().user.id
        self._limits.read(user_id)
        return user_id

    async def _decoded(
        self, wire: bytes, parse: Callable[[bytes], Sequence[event_pb2.EventInput]], field: str
    ) -> Submission:
        """Parse and decode an atomic call, in a thread when that may take long.

        What would be refused however good it is, is refused first. What waits for the thread are
        bytes: a parsed message may take a hundred times as much.
        """
        user = current_principal.get().user
        self._limits.admit(user.id)
        self._intake.admit(user.id, len(wire))
        count = 1

        def decode() -> Submission:
            nonlocal count
            events = parse(wire)
            count = len(events)
            return self._decoder.submission(events, user=user, field=field, size=len(wire))

        try:
            if len(wire) > _LARGE:
                return await self._offload.run(user.id, decode)
            return decode()
        except (FieldInvalid, asyncio.CancelledError):
            # Bad events, and those taken back, cost the same, or would be a way around the limits.
            self._limits.charge(user.id, events=count, size=len(wire))
            raise

    async def _store(self, submission: Submission, field: str) -> Sequence[event_pb2.EventReceipt]:
        """Store an atomic submission; raises what refuses it, as decoding took time."""
        user_id, size = submission.user.id, submission.size
        try:
            self._limits.admit(user_id)
            self._intake.admit(user_id, size)
            answer = self._intake.submit(submission)
        finally:
            # What is refused only now was decoded, and costs as much.
            self._limits.charge(user_id, events=len(submission.events), size=size)
        verdicts = await answer
        raise_refusals(verdicts, field)
        return encode_receipts(
            (index, event, verdicts.get(index)) for index, event in enumerate(submission.events)
        )
