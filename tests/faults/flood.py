"""Many callers that submit batches as fast as they are answered."""

import threading
import time
from collections.abc import Iterator, Sequence

import grpc

from ingest.v1.event_pb2 import EventInput
from ingest.v1.ingest_service_pb2 import BatchSubmitEventsRequest
from tests.faults.load import describe, make_event
from tests.faults.trial import Trial


class Flood:
    """What many callers were answered."""

    def __init__(self) -> None:
        self.accepted = 0
        self.refused: list[float] = []
        self.wrong: list[str] = []


class _Caller:
    """Submits batches of 50 until its time is up; one that is refused is sent again."""

    def __init__(self, trial: Trial, flood: Flood, ends: float, numbers: Iterator[int]) -> None:
        self._trial = trial
        self._flood = flood
        self._ends = ends
        self._numbers = numbers

    def run(self) -> None:
        trial = self._trial
        while time.monotonic() < self._ends:
            turn = f"{trial.subject}-flood-{next(self._numbers)}"
            events = [make_event(f"{turn}-{number}") for number in range(50)]
            for event in events:
                trial.journal.note("trial", "new", event.idempotency_key, "invoke")
            while time.monotonic() < self._ends and not self._submit(events):
                time.sleep(0.2)

    def _submit(self, events: Sequence[EventInput]) -> bool:
        trial, flood = self._trial, self._flood
        began = time.monotonic()
        try:
            answer = trial.stub().BatchSubmitEvents(
                BatchSubmitEventsRequest(events=events), metadata=trial.metadata, timeout=20
            )
        except grpc.RpcError as error:
            code, reason = describe(error)
            flood.refused.append((time.monotonic() - began) * 1000)
            if reason != "OVERLOADED":
                flood.wrong.append(f"{code} {reason}")
            return False
        if time.monotonic() < self._ends:
            flood.accepted += len(answer.receipts)
        for event, receipt in zip(events, answer.receipts, strict=True):
            trial.journal.note(
                "trial", "new", event.idempotency_key, "ok", event_id=receipt.event_id
            )
        return True


def flood_with(trial: Trial, *, callers: int, seconds: float) -> Flood:
    """Have so many callers submit batches for so long."""
    flood = Flood()
    ends = time.monotonic() + seconds
    threads = [
        threading.Thread(target=_Caller(trial, flood, ends, trial.numbers).run)
        for _ in range(callers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return flood
