"""One user's share: what is beyond it waits or is refused, and nobody else notices."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import grpc
import psycopg2
import pytest

from ingest.v1 import ingest_service_pb2 as pb
from ingest.v1.event_pb2 import EventInput
from tests.kit.caller import Caller, Refusal, event, refusal_of, refused
from tests.kit.server import (
    DATABASES,
    Service,
    records,
    running,
    settings_for,
    shared_database,
)
from tests.kit.waiting import eventually


@pytest.fixture(scope="module", params=DATABASES)
def limited(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, redis_url: str
) -> Iterator[Service]:
    """A server where a user may submit 10 events or 100 kB a second, read 10, and stream twice."""
    folder = tmp_path_factory.mktemp("limited")
    shares = {
        "USER_EVENTS_PER_SECOND": "10",
        "USER_BYTES_PER_SECOND": "100000",
        "USER_READS_PER_SECOND": "10",
        "USER_STREAMS": "2",
    }
    with (
        shared_database(request, folder) as url,
        running(folder, settings_for(url, redis_url, **shares)) as server,
    ):
        yield server


def flood(caller: Caller) -> tuple[int, Refusal]:
    """Submit until refused, and return how many were not, and the refusal."""
    for accepted in range(1_000):
        try:
            caller.submit(event())
        except grpc.RpcError as error:
            return accepted, refusal_of(error)
    raise AssertionError("never refused")


def test_a_user_who_submits_too_much_is_told_when_to_come_back(limited: Service) -> None:
    greedy, modest = limited.caller(), limited.caller()

    accepted, refusal = flood(greedy)

    assert 20 <= accepted <= 30
    assert refusal.verdict == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
    assert refusal.quotas == {"user": "events or bytes a second"}
    assert refusal.retry_delay is not None
    assert 0 < refusal.retry_delay <= 1
    assert modest.submit(event()).event_id


def test_a_flood_of_refusals_is_counted_in_few_lines_and_decodes_nothing(
    limited: Service,
) -> None:
    greedy = limited.caller()
    before = told(limited)
    flood(greedy)

    # What is decoded is told to be bad, which a few may be that come when there is a share again.
    bad = [refused(greedy.submit, event("")).verdict[1] for _ in range(20)]
    undecoded = bad.count("RATE_LIMITED")
    assert undecoded >= 10
    accepted = sum(not is_refused(greedy) for _ in range(100))

    beyond = 1 + undecoded + 100 - accepted
    assert beyond >= 50
    eventually(lambda: sum(told(limited)) - sum(before) >= beyond, timeout=5)
    assert len(told(limited)) - len(before) <= 20


def test_bad_events_are_paid_for_as_good_ones_are(limited: Service) -> None:
    sloppy, bulky = limited.caller(), limited.caller()

    verdicts = [refused(sloppy.submit, event("")).verdict[1] for _ in range(50)]
    batches = [refused(bulky.batch, [event("")] * 500).verdict[1] for _ in range(2)]

    assert 20 <= verdicts.count("FIELD_INVALID") <= 30
    assert verdicts.count("RATE_LIMITED") == 50 - verdicts.count("FIELD_INVALID")
    assert batches == ["FIELD_INVALID", "RATE_LIMITED"]


@pytest.mark.parametrize("size", [3_000_000, 60_000], ids=["large", "small"])
def test_messages_of_a_stream_that_do_not_parse_are_paid_for(limited: Service, size: int) -> None:
    sloppy = limited.caller()

    for _ in range(1 + 900_000 // size):
        assert refused(sloppy.wire_stream, [b"\xff" * size]).verdict[1] == "FIELD_INVALID"

    assert refused(sloppy.submit, event()).verdict[1] == "RATE_LIMITED"


def is_refused(caller: Caller, sent: EventInput | None = None) -> bool:
    try:
        caller.submit(sent or event())
    except grpc.RpcError:
        return True
    return False


def told(service: Service) -> list[int]:
    """How many refused calls each line about them stands for."""
    refusals = (line for line in records(service.process) if line["event"] == "call_refused")
    return [line["count"] for line in refusals]


def test_large_events_at_the_same_time_share_what_the_user_has(limited: Service) -> None:
    greedy = limited.caller()
    large = event(payload={"text": "a" * 300_000})

    with ThreadPoolExecutor(8) as pool:
        refusals = list(pool.map(lambda _: is_refused(greedy, large), range(8)))

    assert refusals.count(False) <= 2


#: Takes the decoder some 100 ms: a number that is no double makes it look twice at everything.
SLOW = EventInput(type="slow", payload_json="[1234567890123456789 ," + "1.0," * 99_990 + "1]")


@contextmanager
def busy(service: Service) -> Iterator[Sequence[Any]]:
    """Have a dozen others keep the decoder busy, each with one call; most of them still wait."""
    request = pb.SubmitEventRequest(event=SLOW)
    callers = [service.caller() for _ in range(12)]
    calls = [
        caller.stub.SubmitEvent.future(request, metadata=caller.metadata) for caller in callers
    ]
    try:
        eventually(lambda: any(call.done() for call in calls), timeout=20)
        yield calls
    finally:
        for call in calls:
            call.cancel()


@pytest.mark.parametrize("stream", [False, True])
def test_a_large_event_that_is_taken_back_while_it_waits_for_the_decoder_is_paid_for(
    limited: Service, *, stream: bool
) -> None:
    def begin(caller: Caller) -> Any:
        if stream:
            requests = iter([pb.StreamEventsRequest(events=[SLOW])])
            return caller.stub.StreamEvents.future(requests, metadata=caller.metadata)
        return caller.stub.SubmitEvent.future(
            pb.SubmitEventRequest(event=SLOW), metadata=caller.metadata
        )

    def is_charged_for_nothing() -> bool:
        greedy = limited.caller()
        with busy(limited) as others:
            call = begin(greedy)
            time.sleep(0.1)  # that it arrives; if it does not, the next one may
            call.cancel()
            is_charged = is_refused(greedy)
            return is_charged and not all(other.done() for other in others)

    eventually(is_charged_for_nothing, timeout=30)


def test_large_events_that_are_refused_after_they_were_decoded_are_paid_for(
    limited: Service,
) -> None:
    """All of them wait for the decoder when the first is stored, and with it the share used up."""
    greedy = limited.caller()

    with busy(limited), ThreadPoolExecutor(8) as pool:
        refusals = list(pool.map(lambda _: is_refused(greedy, SLOW), range(8)))
    wait = refused(greedy.submit, event()).retry_delay

    assert refusals.count(False) <= 2
    # Of so many bytes 200,000 were free, and 100,000 are each second.
    assert wait is not None
    assert wait > 4 * len(SLOW.payload_json) / 100_000


def test_who_waits_may_submit_again(limited: Service) -> None:
    greedy = limited.caller()
    flood(greedy)

    eventually(lambda: not is_refused(greedy), timeout=5)


def test_a_stream_beyond_the_share_is_slowed_and_nothing_of_it_is_lost(limited: Service) -> None:
    greedy = limited.caller()

    summary = greedy.stream([event()] * 5 for _ in range(8))

    assert (summary.received, summary.accepted) == (40, 40)


def test_a_stream_beyond_the_share_does_not_outlast_its_time(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """What was read by then is taken, and its price is the user's next call's."""
    shares = {"USER_EVENTS_PER_SECOND": "0.001", "STREAM_MAX_SECONDS": "1"}
    with running(tmp_path, settings_for(database_url, redis_url, **shares)) as service:
        greedy = service.caller()

        summary = greedy.stream([event()] for _ in range(500))
        refusal = refused(greedy.submit, event())

        assert 1 <= summary.received == summary.accepted < 500
        assert greedy.counts() == {"PENDING": summary.accepted}
        assert refusal.verdict[1] == "RATE_LIMITED"


def test_a_wait_beyond_all_measure_is_told_as_a_day(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    shares = {"USER_BYTES_PER_SECOND": "0.001"}
    with running(tmp_path, settings_for(database_url, redis_url, **shares)) as service:
        greedy = service.caller()
        greedy.submit(event(payload={"text": "x" * 1_000}))

        assert refused(greedy.submit, event()).retry_delay == 86_400


def test_messages_without_an_event_cost_their_bytes(limited: Service) -> None:
    """Of a field that nobody knows, large ones and small ones: they wait like any others."""
    greedy = limited.caller()
    for size, count in ((110_000, 4), (15_000, 16)):
        unknown = b"\xfa\x01" + varint(size)
        began = time.monotonic()
        answer = greedy.wire_stream([unknown + bytes(size)] * count)
        assert pb.StreamEventsResponse.FromString(answer).received == 0
        # The burst is two seconds' worth of 100 kB; the rest has to wait.
        assert time.monotonic() - began >= 2


def varint(value: int) -> bytes:
    """Return a number as protobuf writes it."""
    written = b""
    while value >= 0x80:
        written += bytes([value & 0x7F | 0x80])
        value >>= 7
    return written + bytes([value])


@pytest.mark.parametrize("method", ["get", "list", "counts"])
def test_who_reads_too_much_is_refused(limited: Service, method: str) -> None:
    greedy = limited.caller()
    receipt = greedy.submit(event())
    reads: dict[str, Callable[[], object]] = {
        "get": partial(greedy.get, receipt.event_id),
        "list": greedy.list,
        "counts": greedy.counts,
    }

    def read_often() -> None:
        for _ in range(100):
            reads[method]()

    refusal = refused(read_often)
    assert refusal.verdict == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
    assert refusal.quotas == {"user": "reads a second"}
    assert refusal.retry_delay is not None
    assert 0 < refusal.retry_delay <= 1


def test_ten_thousand_polls_by_one_user_cost_another_no_answer(limited: Service) -> None:
    """Half of them on each database; those beyond the share are refused."""
    greedy, modest = limited.caller(), limited.caller()
    request = pb.GetEventCountsRequest()
    outcomes: list[str] = []
    ends: list[float] = []
    began = time.monotonic()
    enough = Event()

    def poll(calls: int) -> None:
        while calls > 0 or not enough.is_set():
            calls -= 1
            try:
                greedy.stub.GetEventCounts(request, metadata=greedy.metadata)
            except grpc.RpcError as error:
                outcomes.append(refusal_of(error).reason)
            else:
                outcomes.append("answered")
        ends.append(time.monotonic())

    def are_made(polls: int) -> bool:
        return len(outcomes) >= polls

    pollers = [Thread(target=poll, args=(625,)) for _ in range(8)]
    for poller in pollers:
        poller.start()
    try:
        for served in range(10):
            # Spread over all the polls, and within its own share. Each call has its deadline.
            eventually(partial(are_made, 500 * served), timeout=60)
            assert modest.is_served()
    finally:
        enough.set()
        for poller in pollers:
            poller.join()
    seconds, polled = max(ends) - began, Counter(outcomes)

    assert polled.keys() == {"RATE_LIMITED", "answered"}
    assert polled.total() >= 5_000
    assert polled["answered"] <= 10 * (seconds + 3)


@contextmanager
def streaming_twice(user: Caller) -> Iterator[Sequence[Any]]:
    """Hold two streams of somebody new open, each after the first event."""
    done = Event()

    def one_message() -> Iterator[pb.StreamEventsRequest]:
        yield pb.StreamEventsRequest(events=[event()])
        done.wait(40)

    with ExitStack() as ending:
        ending.callback(done.set)
        calls = [
            user.stub.StreamEvents.future(one_message(), metadata=user.metadata) for _ in range(2)
        ]
        eventually(lambda: user.counts() == {"PENDING": 2}, timeout=10, interval=0.2)
        yield calls


def test_a_third_stream_is_refused_until_one_ends(limited: Service) -> None:
    user = limited.caller()

    with streaming_twice(user) as calls:
        refusal = refused(user.stream, [[event()]])
    assert refusal.verdict == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
    assert refusal.quotas == {"user": "streams at once"}
    assert refusal.retry_delay is not None
    assert refusal.retry_delay > 0
    assert [call.result(timeout=10).accepted for call in calls] == [1, 1]
    assert user.stream([[event()]]).accepted == 1


def test_all_streams_of_one_user_leave_another_its_own(limited: Service) -> None:
    greedy, modest = limited.caller(), limited.caller()

    with streaming_twice(greedy) as calls:
        assert refused(greedy.stream, [[event()]]).reason == "RATE_LIMITED"
        with streaming_twice(modest) as others:
            pass
    assert [call.result(timeout=10).accepted for call in (*calls, *others)] == [1] * 4


def test_a_call_that_takes_too_long_is_ended_and_what_it_sent_is_still_stored(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Somebody holds the table: the client is told before its patience or PostgreSQL's ends."""
    env = settings_for(database_url, redis_url, UNARY_MAX_SECONDS="0.8")
    with running(tmp_path, env) as server, closing(psycopg2.connect(database_url)) as other:
        caller, keyed = server.caller(), event(idempotency_key="late")
        caller.submit(event())
        with other.cursor() as cursor:
            cursor.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        refusals = [refused(call) for call in (partial(caller.submit, keyed), caller.list)]
        other.rollback()
        again = caller.submit(keyed)

    for refusal in refusals:
        assert refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert refusal.text == "not answered in time; what was sent may be stored"
    assert again.duplicate
