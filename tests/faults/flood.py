"""Many callers that submit as fast as they are answered, or at a rate of their own."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from ingest.v1.event_pb2 import EventInput
from ingest.v1.ingest_service_pb2 import BatchSubmitEventsRequest
from tests.faults.load import describe, make_event
from tests.faults.trial import Trial


@dataclass(slots=True)
class Flood:
    """What many callers were answered."""

    #: Events.
    accepted: int = 0
    #: Milliseconds of each call that was answered OK, and of each that was refused.
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    #: How often each code and reason came.
    reasons: Counter[str] = field(default_factory=Counter)
    #: Seconds that RetryInfo asked for; None for a refusal without it.
    delays: list[float | None] = field(default_factory=list)

    @property
    def offered(self) -> int:
        """Calls, refused and accepted."""
        return len(self.answered) + len(self.refused)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How each caller submits."""

    #: Events of one call.
    events: int = 50
    #: Seconds before a call that was refused is repeated.
    pause: float = 0.2
    #: Seconds from one call to the next; 0: as fast as they are answered.
    interval: float = 0.0


class _Caller:
    """Submits batches until its time is up; one that is refused is sent again."""

    def __init__(self, trial: Trial, flood: Flood, ends: float, pace: Pace) -> None:
        self._trial = trial
        self._flood = flood
        self._ends = ends
        self._pace = pace
        self._due = time.monotonic()

    def run(self) -> None:
        trial, pace = self._trial, self._pace
        while time.monotonic() < self._ends:
            turn = f"{trial.subject}-flood-{next(trial.numbers)}"
            events = [make_event(f"{turn}-{number}") for number in range(pace.events)]
            for event in events:
                trial.journal.note("trial", "new", event.idempotency_key, "invoke")
            while time.monotonic() < self._ends and not self._submit(events):
                time.sleep(pace.pause)

    def _submit(self, events: Sequence[EventInput]) -> bool:
        trial, flood = self._trial, self._flood
        time.sleep(max(0.0, self._due - time.monotonic()))
        began = time.monotonic()
        self._due = max(self._due + self._pace.interval, began)
        try:
            answer = trial.stub().BatchSubmitEvents(
                BatchSubmitEventsRequest(events=events), metadata=trial.metadata, timeout=20
            )
        except grpc.RpcError as error:
            flood.refused.append((time.monotonic() - began) * 1000)
            flood.reasons[" ".join(describe(error))] += 1
            flood.delays.append(_retry_delay(error))
            return False
        if time.monotonic() < self._ends:
            flood.accepted += len(answer.receipts)
            flood.answered.append((time.monotonic() - began) * 1000)
        for event, receipt in zip(events, answer.receipts, strict=True):
            trial.journal.note(
                "trial", "new", event.idempotency_key, "ok", event_id=receipt.event_id
            )
        return True


def flood_with(trial: Trial, *, callers: int, seconds: float, pace: Pace | None = None) -> Flood:
    """Have so many callers submit for so long."""
    flood = Flood()
    ends = time.monotonic() + seconds
    threads = [
        threading.Thread(target=_Caller(trial, flood, ends, pace or Pace()).run)
        for _ in range(callers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return flood


def quantile(times: Sequence[float], share: float) -> float:
    """Return a quantile; 0 without any."""
    return sorted(times)[min(len(times) - 1, int(len(times) * share))] if times else 0.0


def _retry_delay(error: grpc.RpcError) -> float | None:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # a failed call is both
    for detail in status.details if status is not None else ():
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            return float(retry.retry_delay.ToMicroseconds() / 1e6)
    return None
