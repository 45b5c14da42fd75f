"""Rows 29 and 30: the calls that are in progress at SIGTERM, seen from within their handlers."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ingest.v1.ingest_service_pb2 import StreamEventsRequest, SubmitEventRequest
from tests.faults.conftest import Case
from tests.faults.load import describe, make_event
from tests.faults.rig import BRISK, Rig
from tests.faults.trial import Trial
from tests.kit.proxy import Point
from tests.kit.waiting import eventually

#: In progress when the signal comes.
_CALLS = {"SubmitEvent", "StreamEvents", "Watch"}


@pytest.mark.row(29, "every handler is left at SIGTERM")
@pytest.mark.parametrize("answered", [True, False], ids=["answered", "never-answered"])
@pytest.mark.timeout(120)
def test_every_handler_is_left(
    trial: Trial, rig: Rig, case: Case, tmp_path: Path, answered: bool
) -> None:
    """A stream, a call that waits for the database, and a watcher: each runs to its `finally`."""
    notes = tmp_path / "handlers"
    line = rig.server_lines[0].database
    call_event, stream_event = (
        make_event(f"{trial.subject}-{kind}") for kind in ("call", "stream")
    )
    for event in (call_event, stream_event):
        trial.journal.note("trial", "new", event.idempotency_key, "invoke")
    over = threading.Event()

    def messages() -> Iterator[StreamEventsRequest]:
        yield StreamEventsRequest(events=[stream_event])
        over.wait(60)

    with (
        rig.changed(rig.server, FAULTS_PLANT=f"note-handlers={notes}"),
        grpc.insecure_channel(rig.target()) as channel,
    ):
        trial.submit({})
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=60)  # type: ignore[attr-defined]
        next(watch)
        stream = trial.stub().StreamEvents.future(messages(), metadata=trial.metadata, timeout=60)
        trap = line.trap(call_event.idempotency_key.encode(), Point.BEFORE)
        call = trial.stub().SubmitEvent.future(
            SubmitEventRequest(event=call_event), metadata=trial.metadata, timeout=60
        )
        trap.wait()
        eventually(lambda: _noted(notes)[0] - _noted(notes)[1] == Counter(_CALLS))
        if answered:
            threading.Timer(1, trap.release).start()
        began = time.monotonic()
        code = rig.server.stop()
        took = time.monotonic() - began
        ends = [_end(call.result), _end(stream.result), _end(lambda: list(watch))]
        over.set()
        trap.cut()
    entered, left = _noted(notes)
    rig.restore()
    trial.verdict()

    case.note(
        f"{sum(entered.values())} handlers entered and left, ended after {took:.1f} s; {ends}"
    )
    assert code == 0
    assert took <= (20 if case.long else float(BRISK["INGEST_DRAIN_SECONDS"])) + 2
    assert entered == left
    assert (ends[0] == "OK") == answered


def _noted(notes: Path) -> tuple[Counter[str], Counter[str]]:
    """How often each handler was entered, and left."""
    found = [line.split() for line in notes.read_text().splitlines()]
    return (
        Counter(name for what, name in found if what == "entered"),
        Counter(name for what, name in found if what == "left"),
    )


def _end(wait: Callable[[], object]) -> str:
    """How a call ended."""
    try:
        wait()
    except grpc.RpcError as error:
        return " ".join(describe(error))
    return "OK"
