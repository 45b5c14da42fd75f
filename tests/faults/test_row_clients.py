"""Rows 27 to 32: clients that die, cancel, roll, flood, and a server that is told to end."""

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from ingest.v1.ingest_service_pb2 import (
    StreamEventsRequest,
    SubmitEventRequest,
)
from tests.faults.conftest import Case
from tests.faults.flood import Pace, flood_with, quantile
from tests.faults.load import describe, make_event
from tests.faults.probe import Probe
from tests.faults.rig import Rig
from tests.faults.trial import Trial, resident
from tests.kit.proxy import Point

_NOISE_MS = 50.0


@pytest.mark.row(27, "client dies or cancels in a stream")
@pytest.mark.timeout(300)
def test_clients_that_die(trial: Trial, case: Case) -> None:
    """What they had sent is sent again as a whole, and is there once."""
    for turn in range(case.count(2, 50)):
        plan = {"unary": 0, "pollers": 0, "seed": turn, "run": f"{trial.subject}-dies{turn}"}
        load = trial.load(**plan)
        time.sleep(case.random.uniform(0.8, 1.6))
        load.kill()
        trial.load(**plan, again=True)
        time.sleep(2)
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


@pytest.mark.row(28, "cancelled streams and dropped calls")
@pytest.mark.timeout(900)
def test_cancelled_calls_leave_nothing(trial: Trial, rig: Rig, case: Case) -> None:
    """Memory, descriptors and threads come back to where they were."""
    trial.load()
    streams, calls = case.count(2_000, 100_000), case.count(500, 10_000)
    _cancel(trial, streams // 10, calls // 10)
    time.sleep(1)
    memory = resident(rig.server.pids())
    _cancel(trial, streams * 9 // 10, calls * 9 // 10)
    time.sleep(1)
    more = resident(rig.server.pids()) - memory
    trial.verdict()

    case.note(f"{streams} streams, {calls} calls: {more / 1e6:+.1f} MB")
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
    history = trial.verdict()

    case.note(f"slowest end {slowest:.1f} s")
    assert slowest <= grace + 2
    assert not history.facts("gave_up")


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
    assert ended == "OK" if comes else ended.startswith(("UNAVAILABLE", "CANCELLED"))


@pytest.mark.row(31, "overload")
@pytest.mark.timeout(900)
def test_overload(trial: Trial, rig: Rig, case: Case) -> None:
    """What is refused costs nothing: the goodput stays, refusals are quick, health is fine.

    The line to the database is made slow and the groups small, so that these two cores can offer
    several times the capacity.
    """
    limits = {"INGEST_GROUP_ROWS": "50", "INGEST_WAITING_ROWS": "1000"}
    with rig.changed(rig.server, **limits):
        line = rig.server_lines[0].database
        line.latency = 0.01
        calm = flood_with(trial, callers=4, seconds=3)
        capacity = calm.accepted / 3
        alone = quantile(flood_with(trial, callers=1, seconds=1).answered, 0.5)
        memory = resident(rig.server.pids())
        with Probe(rig.target()) as probe:
            began = time.monotonic()
            seconds = case.count(5, 300)
            flood = flood_with(trial, callers=60, seconds=seconds)
            ended = time.monotonic()
            grown = resident(rig.server.pids()) - memory
            back = _calm_again(trial, alone) - ended
        line.latency = 0
        goodput = flood.accepted / seconds
        trial.load()
        time.sleep(1)
        trial.verdict()

    # A call that asks for health waits for the same two cores, and for nothing else.
    slow, noise = quantile(flood.refused, 0.9), probe.milliseconds(began, ended)
    offered = flood.offered * 50 / seconds
    case.note(
        f"capacity {capacity:.0f}/s, offered {offered / capacity:.1f} times as much, goodput"
        f" {goodput:.0f}/s with {len(flood.refused)} refusals, p90 {slow:.0f} ms beside"
        f" {noise:.0f} ms for health; {grown / 1e6:+.1f} MB; as before after {back:.1f} s"
    )
    assert offered >= 3 * capacity
    assert goodput >= 0.8 * capacity
    assert flood.reasons.keys() == {"UNAVAILABLE OVERLOADED"}
    assert all(delay is not None and 0 < delay <= 1 for delay in flood.delays)
    assert slow <= 100 + max(noise, _NOISE_MS)
    assert probe.answers(began, ended) == {"SERVING"}
    assert grown <= 50e6
    assert back <= 10


def _calm_again(trial: Trial, alone: float) -> float:
    """Return when one caller is answered as quickly as it was before, or give up."""
    for _ in range(30):
        began = time.monotonic()
        flood = flood_with(trial, callers=1, seconds=0.5)
        median = quantile(flood.answered, 0.5)
        if flood.answered and not flood.refused and median <= 2 * alone + _NOISE_MS:
            return began
    return float("inf")


@pytest.mark.row(32, "a noisy user")
@pytest.mark.timeout(300)
def test_a_noisy_user(trial: Trial, rig: Rig, case: Case) -> None:
    """Twenty times as much by one token leaves another user's p99 within twice its own."""
    trial.load(streams=0, pollers=0, unary=1)
    time.sleep(case.count(3, 30))
    noisy = Trial(rig, seed=1)
    began = time.monotonic()
    noisy.load(streams=0, pollers=0, unary=20)
    time.sleep(case.count(4, 60))
    ended = time.monotonic()
    noisy.verdict()
    trial.verdict()

    before, during = trial.unary_ms(before=began), trial.unary_ms(began + 0.5, ended)
    case.note(f"p99 {before:.0f} ms alone, {during:.0f} ms beside the flood")
    assert during <= max(2 * before, before + _NOISE_MS)


@pytest.mark.row(32, "a noisy user, with a limit for each user")
@pytest.mark.timeout(300)
def test_a_noisy_user_beyond_the_limit(trial: Trial, rig: Rig, case: Case) -> None:
    """It is told to wait and gets its share; the other one's calls are neither late nor refused.

    The noisy one does not wait as it is told: it repeats at once.
    """
    share, rate, seconds = 30, 15.0, case.count(8, 60)
    with rig.changed(rig.server, INGEST_USER_EVENTS_PER_SECOND=str(share)):
        noisy = Trial(rig, seed=1)
        trial.load(streams=0, pollers=0, unary=1, unary_rate=rate)
        time.sleep(seconds)
        began = time.monotonic()
        pace = Pace(events=1, pause=0, interval=1 / rate)
        flood = flood_with(noisy, callers=20, seconds=seconds, pace=pace)
        ended = time.monotonic()
        noisy.verdict()
        history = trial.verdict()

    before, during = trial.unary_ms(before=began), trial.unary_ms(began + 0.5, ended)
    quiet = len(history.facts("ok", after=began, before=ended))
    case.note(
        f"{flood.offered / max(1, quiet):.0f} times as much, {flood.accepted / seconds:.0f}/s of"
        f" it taken; p99 {before:.0f} ms alone, {during:.0f} ms beside it"
    )
    assert flood.offered >= 15 * quiet
    assert flood.accepted <= share * (seconds + 3)
    assert flood.reasons.keys() == {"RESOURCE_EXHAUSTED RATE_LIMITED"}
    assert all(flood.delays)
    assert not history.facts("unknown")
    assert during <= max(2 * before, before + _NOISE_MS)


def _cancel(trial: Trial, streams: int, calls: int) -> None:
    """Begin streams and unary calls from several threads, and drop them at once."""
    stub = trial.stub()

    def begin(*, stream: bool) -> None:
        event = make_event(f"{trial.subject}-drop-{next(trial.numbers)}")
        trial.journal.note("trial", "new", event.idempotency_key, "invoke")
        if not stream:
            stub.SubmitEvent.future(
                SubmitEventRequest(event=event), metadata=trial.metadata
            ).cancel()
            return
        asked = threading.Event()

        def requests() -> Iterator[StreamEventsRequest]:
            yield StreamEventsRequest(events=[event])
            asked.set()

        call = stub.StreamEvents.future(requests(), metadata=trial.metadata)
        asked.wait(1)
        call.cancel()

    def some(count: int, *, stream: bool) -> None:
        for _ in range(count):
            begin(stream=stream)

    threads = [
        *(
            threading.Thread(target=some, args=(streams // 8,), kwargs={"stream": True})
            for _ in range(8)
        ),
        threading.Thread(target=some, args=(calls,), kwargs={"stream": False}),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
