"""One client stream: gathers while the group before commits, and sums up at the end."""

import asyncio
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from eventstore.accept import Verdicts
from eventstore.values import Duplicate, KeyConflict, NewEvent, NotStorable, Submission, User
from ingest.v1 import event_pb2
from ingest.v1.ingest_service_pb2 import StreamEventsRequest, StreamEventsResponse
from ingest_service.decode import EventDecoder, size_of
from ingest_service.encode import encode_receipt
from ingest_service.errors import FieldInvalid, IdempotencyConflict, Overloaded, Violation
from ingest_service.intake import Intake

#: As the contract says.
MAX_RECEIPTS = 10_000
MAX_REJECTIONS = 1_000
#: Groups of one stream that may be with the intake: one commits, the next one is ready.
_GROUPS_UNDER_WAY = 2
#: Events and bytes that a stream gathers before it stops reading.
_GATHER_ROWS = 2_000
_GATHER_BYTES = 2 << 20


class _Group(NamedTuple):
    rows: list[NewEvent]
    positions: list[int]
    answer: "asyncio.Future[Verdicts]"


class StreamIntake:
    """The events of one stream on their way into the intake.

    At most two groups are with the intake; what arrives meanwhile makes the next one. So a slow
    stream commits each message at once, and a fast one commits thousands of events together.
    """

    def __init__(self, intake: Intake, decoder: EventDecoder, user: User) -> None:
        """Take the intake, the decoder and the user on whose behalf all events are stored."""
        self._intake = intake
        self._decoder = decoder
        self._user = user
        self._rows: list[NewEvent] = []
        self._positions: list[int] = []
        self._size = 0
        self._under_way: list[_Group] = []
        self._failure: Exception | None = None
        self._progress = asyncio.Event()
        self.summary = StreamEventsResponse()

    @property
    def must_wait(self) -> bool:
        """Whether the next message has to wait: too much is gathered, or the intake was full."""
        return (
            self._failure is not None
            or len(self._rows) >= _GATHER_ROWS
            or self._size >= _GATHER_BYTES
            or (bool(self._rows) and not self._under_way)
        )

    def take(self, message: StreamEventsRequest) -> None:
        """Take the events of the next message; the bad ones are noted and the others stored."""
        first = self.summary.received
        rows, refused = self._decoder.rows(
            message.events, user=self._user, field="events[{}]", first=first
        )
        count = len(message.events)
        self.summary.received = first + count
        self._rows += rows
        if refused:
            self._positions += [i for i in range(first, first + count) if i not in refused]
            for position, violations in refused.items():
                self._reject(position, FieldInvalid.reason, violations)
        else:
            self._positions += range(first, first + count)
        self._size += size_of(rows)
        self._submit()

    async def wait(self) -> None:
        """Wait for a commit; raises what the commit raised."""
        if self._failure is None and not self._under_way:
            await self._intake.room()
            self._submit()
        if self._failure is None and self._under_way:
            self._progress.clear()
            await self._progress.wait()
        if self._failure is not None:
            raise self._failure

    async def finish(self) -> StreamEventsResponse:
        """Wait until everything taken is committed, and return the summary."""
        self._submit()
        while self._rows or self._under_way:
            await self.wait()
        if self._failure is not None:
            raise self._failure
        return self.summary

    def _submit(self) -> None:
        if not self._rows or self._failure or len(self._under_way) >= _GROUPS_UNDER_WAY:
            return
        submission = Submission(user=self._user, events=self._rows, atomic=False, size=self._size)
        try:
            answer = self._intake.submit(submission)
        except Overloaded:
            # The stream stops reading (must_wait) until there is room.
            return
        except Exception as error:  # noqa: BLE001  # raised to the caller by wait or finish
            self._failure = error
            return
        self._under_way.append(_Group(self._rows, self._positions, answer))
        self._rows, self._positions, self._size = [], [], 0
        answer.add_done_callback(self._answered)

    def _answered(self, _answer: "asyncio.Future[Verdicts]") -> None:
        while self._under_way and self._under_way[0].answer.done():
            group = self._under_way.pop(0)
            error = group.answer.exception()
            if error is not None:
                self._failure = self._failure or error  # type: ignore[assignment]
            else:
                self._add(group.rows, group.positions, group.answer.result())
        self._submit()
        self._progress.set()

    def _add(self, rows: Sequence[NewEvent], positions: Sequence[int], verdicts: Verdicts) -> None:
        summary = self.summary
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
            stored = (
                encode_receipt(event, verdicts.get(offset), positions[offset])
                for offset, event in enumerate(rows)
                if not isinstance(verdicts.get(offset), KeyConflict | NotStorable)
            )
            summary.receipts.extend(islice(stored, room))

    def _reject(
        self, position: int, reason: str, violations: Sequence[Violation], event_id: str = ""
    ) -> None:
        self.summary.rejected += 1
        if len(self.summary.rejections) < MAX_REJECTIONS:
            self.summary.rejections.append(
                event_pb2.Rejection(
                    index=position,
                    reason=reason,
                    field_violations=[
                        event_pb2.FieldViolation(field=field, description=description)
                        for field, description in violations
                    ],
                    event_id=event_id,
                )
            )
