"""One client stream: gathers while the group before commits, and sums up at the end."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

from eventstore.accept import Verdicts
from eventstore.values import (
    Duplicate,
    KeyConflict,
    NewEvent,
    NotStorable,
    Submission,
    User,
)
from ingest.v1 import event_pb2
from ingest.v1.ingest_service_pb2 import StreamEventsResponse
from ingest_service.decode import EventDecoder
from ingest_service.encode import encode_receipts
from ingest_service.errors import FieldInvalid, IdempotencyConflict, IngestError, Violation
from ingest_service.intake import Intake
from ingest_service.limits import UserLimits
from ingest_service.offload import Offload
from ingest_service.parse import parse_stream
from ingest_service.status import first_violations
from ingest_service.wire import cut

#: As the contract says.
MAX_RECEIPTS = 10_000
MAX_REJECTIONS = 1_000
#: Bytes that field violations may take in one answer, which with all receipts stays well below the
#: 4 MiB that a client takes unless it says otherwise.
_VIOLATION_BYTES = 1 << 20
#: Groups of one stream that may be with the intake: one commits, the next one is ready.
_GROUPS_UNDER_WAY = 2
#: Messages and bytes that a stream gathers before it stops reading. They are decoded in one go,
#: during which the event loop does nothing else: some milliseconds.
_GATHERED_MESSAGES = 1_000
_GATHERED_BYTES = 256 << 10
#: Events that are decoded in one go, and handed in together: a message may hold many more tiny
#: ones, which would stop the event loop, fill the memory, and outlast a statement of the database.
_MOST_EVENTS = 2_000
#: Events with the intake beyond which a stream decodes no further piece of a large message. Not
#: groups: large events come few in a message, and a group commit wants many of them.
_MOST_UNDER_WAY = _GROUPS_UNDER_WAY * _MOST_EVENTS
#: Seconds after which a stream that waits for its user's share looks again.
_LONGEST_SLEEP = 1.0


#: Violations by position.
Refused = Mapping[int, Sequence[Violation]]


class _Group(NamedTuple):
    rows: list[NewEvent]
    positions: Sequence[int]
    answer: "asyncio.Future[Verdicts]"


class StreamIntake:
    """The events of one stream on their way into the intake.

    At most two groups are with the intake; what arrives meanwhile makes the next one. So a slow
    stream commits each message at once, and a fast one commits many messages together.
    """

    def __init__(
        self,
        intake: Intake,
        decoder: EventDecoder,
        user: User,
        limits: UserLimits,
        offload: Offload,
        *,
        ends_at: float,
    ) -> None:
        """Take the intake, the decoder, and the user on whose behalf all events are stored.

        `ends_at`, in seconds of the monotonic clock, is when the stream no longer waits for the
        user's share.
        """
        self._intake = intake
        self._decoder = decoder
        self._user = user
        self._limits = limits
        self._offload = offload
        self._ends_at = ends_at
        self._gathered: list[bytes] = []
        self._size = 0
        #: Parsed events, how many of them were handed in, and the bytes of all of them.
        self._parsed: Sequence[event_pb2.EventInput] = ()
        self._handed_in = self._parsed_size = 0
        self._under_way: list[_Group] = []
        self._failure: Exception | None = None
        #: Seconds until the user's share is no longer used up.
        self._overdrawn = 0.0
        self._progress = asyncio.Event()
        self._summary = StreamEventsResponse()
        self._room_for_violations = _VIOLATION_BYTES

    def take(self, wire: bytes) -> bool:
        """Take the next message, still encoded; returns whether `wait` must come before another."""
        self._gathered.append(wire)
        self._size += len(wire)
        if len(self._under_way) < _GROUPS_UNDER_WAY:
            self._submit()
        return self._must_wait

    async def take_large(self, wire: bytes) -> None:
        """Take a message that takes long to decode, after those before it; raises IngestError."""
        while self._gathered or self._parsed:
            await self._advance()
        left = len(wire)
        try:
            for piece in cut(wire, _MOST_EVENTS):
                await self._take_piece(piece)
                left -= len(piece)
        except (asyncio.CancelledError, FieldInvalid):
            # What does not parse, or is taken back meanwhile, costs all the same.
            self._limits.charge(self._user.id, events=1, size=left)
            raise

    async def _take_piece(self, piece: bytes) -> None:
        rows, refused = await self._offload.run(self._user.id, partial(self._decode_piece, piece))
        # Whoever else waits for the same may have been quicker: looked at again at the end.
        while (
            full := sum(len(group.rows) for group in self._under_way) >= _MOST_UNDER_WAY
        ) or not self._intake.has_room:
            if full:
                await self._advance()
            else:
                await self._intake.room()
        if self._failure is not None:
            raise self._failure
        self._hand_in(rows, refused, len(piece))

    async def wait(self) -> None:
        """Wait until the next message may be taken; raises what a commit raised."""
        while self._must_wait:
            await self._advance()

    async def finish(self) -> StreamEventsResponse:
        """Wait until everything taken is committed, and return the summary."""
        while self._gathered or self._parsed or self._under_way or self._failure:
            await self._advance()
        return self._summary

    @property
    def _must_wait(self) -> bool:
        """Whether too much is gathered, or the intake was full, or nothing helps any more."""
        return (
            len(self._gathered) >= _GATHERED_MESSAGES
            or self._size >= _GATHERED_BYTES
            or (not self._under_way and bool(self._gathered))
            or bool(self._parsed)
            or self._failure is not None
            or self._overdrawn > 0
        )

    async def _advance(self) -> None:
        """Hand in what is gathered, or wait for a commit, or for the user's share of time."""
        if self._failure is not None:
            raise self._failure
        if self._overdrawn:
            left = self._ends_at - time.monotonic()
            if left > 0:
                # Until it is paid for; others of the same user may take more meanwhile.
                await asyncio.sleep(min(self._overdrawn, _LONGEST_SLEEP, left))
                self._overdrawn = self._limits.submit_wait(self._user.id)
            else:
                # What was read is taken; the debt is the user's next call's.
                self._overdrawn = 0.0
            return
        if not self._under_way:
            await self._intake.room()
            self._submit()
        if self._under_way and self._failure is None:
            self._progress.clear()
            await self._progress.wait()
        else:
            # Nothing of what was handed in was good: others get their turn all the same.
            await asyncio.sleep(0)
        if self._failure is not None:
            raise self._failure

    def _submit(self) -> None:
        """Decode the next of what is gathered and hand it in, when there is room."""
        if self._failure is not None or not self._intake.has_room:
            return
        try:
            some = self._next_events()
            rows, refused = self._decode(some)
        except IngestError as error:
            self._failure = error
            if isinstance(error, FieldInvalid):
                self._limits.charge(self._user.id, events=1, size=self._parsed_size)
            return
        if some:
            self._hand_in(rows, refused, self._parsed_size * len(some) // len(self._parsed))
            self._handed_in += len(some)
        elif self._parsed_size:
            # Messages without an event cost their bytes all the same.
            self._hand_in(rows, refused, self._parsed_size)
        if self._handed_in >= len(self._parsed):
            self._parsed, self._handed_in, self._parsed_size = (), 0, 0

    def _next_events(self) -> Sequence[event_pb2.EventInput]:
        """Return the parsed events that come next, after parsing what is gathered."""
        if not self._parsed and self._gathered:
            wires, self._gathered = self._gathered, []
            self._parsed_size, self._size = self._size, 0
            self._parsed = parse_stream(wires)
        if len(self._parsed) <= _MOST_EVENTS:
            return self._parsed
        return self._parsed[self._handed_in : self._handed_in + _MOST_EVENTS]

    def _decode_piece(self, piece: bytes) -> tuple[list[NewEvent], Refused]:
        return self._decode(parse_stream([piece]))

    def _decode(self, events: Sequence[event_pb2.EventInput]) -> tuple[list[NewEvent], Refused]:
        return self._decoder.rows(
            events, user=self._user, field="events[{}]", first=self._summary.received
        )

    def _hand_in(self, rows: list[NewEvent], refused: Refused, size: int) -> None:
        """Hand the good events in; the bad ones are noted."""
        first = self._summary.received
        count = len(rows) + len(refused)
        after = self._summary.received = first + count
        for position, violations in refused.items():
            self._reject(position, FieldInvalid.reason, violations)
        # What was sent is taken; the stream then waits until it is paid for.
        self._limits.charge(self._user.id, events=count, size=size)
        self._overdrawn = self._limits.submit_wait(self._user.id)
        if not rows:
            return
        try:
            positions: Sequence[int] = range(first, after)
            if refused:
                positions = [position for position in positions if position not in refused]
            answer = self._intake.submit(
                Submission(user=self._user, events=rows, atomic=False, size=size)
            )
        except IngestError as error:
            self._failure = error
            return
        self._under_way.append(_Group(rows, positions, answer))
        answer.add_done_callback(self._answered)

    def _answered(self, _answer: "asyncio.Future[Verdicts]") -> None:
        while self._under_way and self._under_way[0].answer.done():
            group = self._under_way.pop(0)
            error = group.answer.exception()
            if error is not None:
                self._failure = self._failure or error  # type: ignore[assignment]
            else:
                self._add(group.rows, group.positions, group.answer.result())
        try:
            self._submit()
        finally:
            self._progress.set()

    def _add(self, rows: Sequence[NewEvent], positions: Sequence[int], verdicts: Verdicts) -> None:
        summary = self._summary
        for offset, verdict in verdicts.items():
            if isinstance(verdict, Duplicate):
                summary.duplicates += 1
            elif isinstance(verdict, KeyConflict):
                self._reject(positions[offset], IdempotencyConflict.reason, (), verdict.event_id)
            else:
                field = f"events[{positions[offset]}]"
                violations = [Violation(field, verdict.reason)]
                self._reject(positions[offset], FieldInvalid.reason, violations)
        refused = sum(not isinstance(verdict, Duplicate) for verdict in verdicts.values())
        summary.accepted += len(rows) - len(verdicts)
        room = MAX_RECEIPTS - len(summary.receipts)
        if len(rows) - refused > room:
            summary.receipts_truncated = True
        if room > 0:
            decided = zip(positions, rows, map(verdicts.get, range(len(rows))), strict=True)
            stored = (one for one in decided if not isinstance(one[2], KeyConflict | NotStorable))
            summary.receipts.extend(encode_receipts(islice(stored, room)))

    def _reject(
        self, position: int, reason: str, violations: Sequence[Violation], event_id: str = ""
    ) -> None:
        self._summary.rejected += 1
        if len(self._summary.rejections) >= MAX_REJECTIONS:
            return
        rejection = event_pb2.Rejection(index=position, reason=reason, event_id=event_id)
        if self._room_for_violations > 0:
            for field, description in first_violations(violations):
                rejection.field_violations.add(field=field, description=description)
            self._room_for_violations -= rejection.ByteSize()
        self._summary.rejections.append(rejection)
