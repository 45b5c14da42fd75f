"""Users who keep the decoder busy: what waits for it is small, and others have their turn.

On servers of their own, because such calls are answered late by the very meaning of it.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct, Value
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ingest.v1.event_pb2 import EventInput
from tests.hostile.test_wire import field
from tests.hostile.vitals import rss, watching_rss
from tests.kit.caller import Caller, event, refused
from tests.kit.server import Service, running, settings_for
from tests.kit.waiting import eventually

#: Calls of one user: half as many as may wait for the decoder.
WAITING = 32

#: The largest texts on which the parser has to look twice at everything.
SLOW = [
    '{"\\u003a":1,"a":[' + "1.0," * 99_990 + "1]}",
    "[1234567890123456789 ," + "1.0," * 99_990 + "1]",
    '{"a":1,"a":[' + "1.0," * 99_990 + "1]}",
]
#: Of each so many, so that it takes a while.
TIMES = 4


def call_quietly(caller: Caller, text: str, *, stream: bool) -> None:
    wanted = EventInput(type="slow", payload_json=text)
    try:
        if stream:
            caller.stream([[wanted]], timeout=90)
        else:
            caller.submit(wanted, timeout=90)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT  # noqa: PT017  # or it was taken


@pytest.fixture
def busy(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path, settings_for(database_url, redis_url)) as server:
        yield server


def dense(count: int) -> bytes:
    """Return a SubmitEventRequest whose payload is a list of so many values without a kind."""
    listed = field(Value.LIST_VALUE_FIELD_NUMBER, b"\x0a\x00" * count)
    struct = field(Struct.FIELDS_FIELD_NUMBER, field(1, b"a") + field(2, listed))
    return field(1, field(1, b"dense") + field(EventInput.PAYLOAD_FIELD_NUMBER, struct))


def test_large_messages_wait_unparsed(busy: Service) -> None:
    """Thirty at once, of one user, that take a hundred times their size once they are parsed."""
    wire, before = dense(1_900_000), rss(busy)
    health = health_pb2_grpc.HealthStub(busy.channel)
    greedy = busy.caller()
    with watching_rss(busy) as seen, ThreadPoolExecutor(30) as pool:
        answers = [pool.submit(refused, greedy.wire, "SubmitEvent", wire) for _ in range(30)]
        while not all(answer.done() for answer in answers):
            health.Check(health_pb2.HealthCheckRequest(), timeout=5)  # type: ignore[attr-defined]  # a stub's
            time.sleep(0.01)  # to leave the machine to the server

    verdicts = {answer.result().verdict for answer in answers}
    assert ("INVALID_ARGUMENT", "FIELD_INVALID") in verdicts
    assert verdicts <= {("INVALID_ARGUMENT", "FIELD_INVALID"), ("UNAVAILABLE", "OVERLOADED")}
    assert max(seen) - before < 700 << 20


def test_slow_texts_of_one_user_leave_another_a_turn(busy: Service) -> None:
    """Thirty of them are waiting when somebody else submits a large event, and is next but one."""
    greedy = busy.caller()
    with ThreadPoolExecutor(WAITING) as pool:
        answers = [pool.submit(call_quietly, greedy, SLOW[0], stream=False) for _ in range(WAITING)]
        eventually(lambda: any(answer.done() for answer in answers), timeout=30)
        busy.caller().submit(event(payload="x" * 70_000), timeout=15)
        waiting = sum(not answer.done() for answer in answers)

    assert waiting >= 10


@pytest.mark.parametrize("stream", [False, True])
def test_health_answers_while_the_slowest_texts_are_decoded(busy: Service, *, stream: bool) -> None:
    health, alice = health_pb2_grpc.HealthStub(busy.channel), busy.caller()
    callers = [
        threading.Thread(target=call_quietly, args=(alice, text), kwargs={"stream": stream})
        for text in SLOW * TIMES
    ]
    started = time.monotonic()
    for caller in callers:
        caller.start()
    slowest = 0.0
    while any(caller.is_alive() for caller in callers):
        began = time.monotonic()
        health.Check(health_pb2.HealthCheckRequest(), timeout=5)  # type: ignore[attr-defined]  # a stub's
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.01)  # to leave the machine to the server

    # On the event loop, they would stop it one after the other.
    took = time.monotonic() - started
    assert slowest < took / 4, f"{slowest:.2f} of {took:.2f} s"
    assert alice.is_served()


def test_others_are_answered_while_large_answers_are_encoded(busy: Service) -> None:
    """Pages of very many values, as Structs; on the event loop each would stop everything."""
    health, greedy, modest = health_pb2_grpc.HealthStub(busy.channel), busy.caller(), busy.caller()
    for _ in range(20):
        greedy.submit(event(payload={"a": [1] * 12_000}))
    shares = []
    for _ in range(4):
        reader = threading.Thread(target=greedy.list, kwargs={"page_size": 1_000})
        started, slowest = time.monotonic(), 0.0
        reader.start()
        while reader.is_alive():
            began = time.monotonic()
            health.Check(health_pb2.HealthCheckRequest(), timeout=5)  # type: ignore[attr-defined]  # a stub's
            modest.submit(event())
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.01)  # to leave the machine to the server
        shares.append(slowest / (time.monotonic() - started))

    # Something else may keep the machine from answering during one of them, and not during all.
    assert min(shares) < 1 / 3, shares


def test_large_calls_of_one_user_leave_others_room(busy: Service) -> None:
    """Four callers fill what may wait for the database again and again; nobody else is refused."""
    wanted, greedy = event(payload="x" * 3_800_000), busy.caller()
    ended, stored = threading.Event(), []

    def keep_submitting() -> None:
        while not ended.is_set():
            with suppress(grpc.RpcError):
                stored.append(greedy.submit(wanted, timeout=30))

    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(keep_submitting) for _ in range(4)]
        modest = busy.caller()
        try:
            for _ in range(40):
                modest.submit(event())
        finally:
            ended.set()
    assert [caller.result() for caller in callers] == [None] * 4
    assert len(stored) >= 4
