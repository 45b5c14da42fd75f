"""Users who keep the decoder busy: what waits for it is small, and others have their turn.

On servers of their own, because such calls are answered late by the very meaning of it.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from google.protobuf.struct_pb2 import Struct, Value
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ingest.v1.event_pb2 import EventInput
from tests.hostile.test_slow_texts import SLOW, call_quietly
from tests.hostile.test_wire import field
from tests.hostile.vitals import rss, watching_rss
from tests.kit.caller import event, refused
from tests.kit.server import Service, running, settings_for
from tests.kit.waiting import eventually

#: Calls of one user: half as many as may wait for the decoder.
WAITING = 32


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
