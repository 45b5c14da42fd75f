"""Rows 27 to 30: clients that die, cancel and hold back, and servers that are told to end."""

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ingest.v1.event_pb2 import EventInput
from ingest.v1.ingest_service_pb2 import (
    StreamEventsRequest,
    SubmitEventRequest,
)
from ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from tests.faults.conftest import Case
from tests.faults.links import link_to
from tests.faults.load import CHANNEL, describe, make_event
from tests.faults.rig import Rig
from tests.faults.trial import Trial, resident
from tests.faults.verdict import BROKER_LINES
from tests.kit.proxy import Point
from tests.kit.waiting import eventually

#: Streams of a thread, or calls, that are under way together before they are dropped.
_WAVE = 10


@pytest.mark.beside_others
@pytest.mark.row(27, "client dies or cancels in a stream")
@pytest.mark.timeout(900)
def test_clients_that_die(trial: Trial, case: Case) -> None:
    """What they had sent is sent again as a whole, and is there once."""
    for turn in range(case.count(2, 50)):
        plan = {
            "unary": 0,
            "batches": 0,
            "pollers": 0,
            "seed": turn,
            "run": f"{trial.subject}-dies{turn}",
        }
        load = trial.load(**plan)
        time.sleep(case.random.uniform(0.8, 1.6))
        load.kill()
        again = trial.load(**plan, again=True)
        time.sleep(2)
        # Or fifty of them would take the processor from everybody else.
        again.stop()
    stub = trial.stub()
    for turn in range(case.count(20, 200)):
        events = [make_event(f"{trial.subject}-cut{turn}-{number}") for number in range(20)]
        for event in events:
            trial.journal.note("trial", "new", event.idempotency_key, "invoke")
        messages = [StreamEventsRequest(events=events[i : i + 2]) for i in range(0, 20, 2)]
        sent = threading.Semaphore(0)
        cut_after = case.random.randint(1, 9)

        def some(count: int = cut_after, told: threading.Semaphore = sent) -> Iterator[Any]:
            yield from messages[:count]  # noqa: B023  # used within this turn
            told.release()
            time.sleep(5)

        call = stub.StreamEvents.future(some(), metadata=trial.metadata)
        assert sent.acquire(timeout=5)
        call.cancel()
        answer = stub.StreamEvents(iter(messages), metadata=trial.metadata, timeout=30)
        assert answer.accepted + answer.duplicates == len(events)
        for event, receipt in zip(events, answer.receipts, strict=True):
            trial.journal.note(
                "trial", "new", event.idempotency_key, "ok", event_id=receipt.event_id
            )
    trial.verdict()


@pytest.mark.beside_others
@pytest.mark.row(27, "the way to the clients goes down")
@pytest.mark.timeout(900)
def test_clients_that_cannot_be_reached(trial: Trial, rig: Rig, case: Case) -> None:
    """Wherever in a stream it happens; the server learns nothing of it, and the clients repeat."""
    with link_to(case, rig.ports[0]) as link:
        load = trial.load(target=link.target)
        for _ in range(case.count(2, 20)):
            time.sleep(case.random.uniform(0.8, 1.6))
            link.down()
            # Longer than a client waits: TCP makes a short loss good.
            time.sleep(load.plan.attempt_timeout + case.random.uniform(1, 2))
            link.up()
            found = time.monotonic()
            eventually(lambda: trial.history().facts("ok", after=found), timeout=30)  # noqa: B023  # asked at once
        trial.verdict()
    unknown = len(trial.history().facts("unknown"))
    case.note(f"{unknown} calls with an unknown end")
    assert unknown


@pytest.mark.row(28, "cancelled streams and dropped calls")
@pytest.mark.timeout(900)
def test_cancelled_calls_leave_nothing(trial: Trial, rig: Rig, case: Case) -> None:
    """Memory, descriptors and threads come back to where they were.

    Every other one is cancelled at once, and may never leave; the others when the server has them.
    """
    trial.load()
    streams, calls = case.count(2_000, 100_000), case.count(500, 10_000)
    _cancel(trial, streams // 10, calls // 10)
    time.sleep(1)
    memory = resident(rig.server.pids())
    dropped = _cancel(trial, streams * 9 // 10, calls * 9 // 10)
    time.sleep(1)
    more = resident(rig.server.pids()) - memory
    trial.verdict()

    stored = {row.key for row in rig.ledger.stored(trial.subject)}
    case.note(f"{streams} streams, {calls} calls: {more / 1e6:+.1f} MB")
    for kind, begun in (("stream", streams), ("call", calls)):
        reached = stored & dropped[kind]
        case.note(f"{len(dropped[kind])} {kind}s dropped unanswered, {len(reached)} events stored")
        # Not nothing; how many are stored before they are dropped is a matter of the machine.
        assert len(reached) >= begun / 20
    assert more <= 30e6


@pytest.mark.row(29, "rolling restart by SIGTERM")
@pytest.mark.timeout(1800)
def test_a_rolling_restart(trial: Trial, rig: Rig, case: Case) -> None:
    """Server, workers, broker and database in turn; a client that repeats loses nothing."""
    trial.load()
    grace = 20 if case.long else 5
    slowest = 0.0
    for _ in range(case.count(1, 20)):
        for member in (rig.server, *rig.workers):
            time.sleep(0.5)
            began = time.monotonic()
            assert member.stop(signal.SIGTERM) == 0
            slowest = max(slowest, time.monotonic() - began)
            member.start()
        rig.redis.restart()
        rig.postgres.restart("fast")
        time.sleep(1)
    history = trial.verdict(allowed=BROKER_LINES)

    case.note(f"slowest end {slowest:.1f} s")
    assert slowest <= grace + 2
    assert not history.facts("gave_up")


@pytest.mark.beside_others
@pytest.mark.row(30, "last byte held back at SIGTERM")
@pytest.mark.parametrize("comes", [True, False], ids=["comes", "never-comes"])
def test_a_call_that_is_half_sent_at_the_end(
    trial: Trial, rig: Rig, case: Case, comes: bool
) -> None:
    """It is answered when the byte comes in time, else ended cleanly; then nobody listens."""
    event = make_event(f"{trial.subject}-held")
    trial.load()
    stub = trial.stub()
    trial.submit({})
    trap = rig.front.trap(event.idempotency_key.encode(), Point.WITHIN)
    trial.journal.note("trial", "new", event.idempotency_key, "invoke")
    call = stub.SubmitEvent.future(
        SubmitEventRequest(event=event), metadata=trial.metadata, timeout=30
    )
    trap.wait()
    # Until the server has read the first part, which nothing outside can see.
    time.sleep(0.3)
    ending = threading.Thread(target=rig.server.stop)
    ending.start()
    time.sleep(1)
    if comes:
        trap.release()
    began = time.monotonic()
    try:
        answer = call.result()
        trial.journal.note(
            "trial", "new", event.idempotency_key, "ok", event_id=answer.receipt.event_id
        )
        ended = "OK"
    except grpc.RpcError as error:
        ended = " ".join(describe(error))
    ending.join()
    trap.release()
    refused = grpc.insecure_channel(f"127.0.0.1:{rig.ports[0]}")
    with pytest.raises(grpc.FutureTimeoutError):
        grpc.channel_ready_future(refused).result(0.5)
    refused.close()
    assert rig.server.process.returncode == 0
    rig.server.start()
    trial.verdict()

    took = time.monotonic() - began
    case.note(f"byte {'came' if comes else 'never came'}: {ended} after {took:.1f} s")
    assert ended == "OK" if comes else ended.startswith("UNAVAILABLE")


def _cancel(trial: Trial, streams: int, calls: int) -> dict[str, set[str]]:
    """Begin streams and unary calls from several threads and drop them; returns their keys.

    Half of them are dropped at once. The others when health, asked after them on the same
    connection, is answered: the server has them then, and mostly not answered them.
    """
    channel = grpc.insecure_channel(trial.rig.target(), options=CHANNEL)
    stub = IngestServiceStub(channel)
    check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]  # a stub's
    dropped: dict[str, set[str]] = {"stream": set(), "call": set()}

    def begin(event: EventInput, kind: str) -> Any:
        if kind == "call":
            return stub.SubmitEvent.future(SubmitEventRequest(event=event), metadata=trial.metadata)
        asked, ended = threading.Event(), threading.Event()

        def requests() -> Iterator[StreamEventsRequest]:
            yield StreamEventsRequest(events=[event])
            asked.set()
            # A stream that ends is answered: this one stays open until it is cancelled.
            ended.wait(5)

        call = stub.StreamEvents.future(requests(), metadata=trial.metadata)
        call.add_done_callback(lambda _: ended.set())
        asked.wait(1)
        return call

    def some(count: int, kind: str) -> None:
        for wave in range(0, count, _WAVE):
            begun = {}
            for _ in range(min(_WAVE, count - wave)):
                key = f"{trial.subject}-drop-{next(trial.numbers)}"
                trial.journal.note("trial", "new", key, "invoke")
                begun[key] = begin(make_event(key), kind)
            if wave // _WAVE % 2:
                check(health_pb2.HealthCheckRequest(), timeout=10)
            dropped[kind].update(key for key, call in begun.items() if call.cancel())

    threads = [
        *(threading.Thread(target=some, args=(streams // 8, "stream")) for _ in range(8)),
        threading.Thread(target=some, args=(calls, "call")),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    channel.close()
    return dropped
