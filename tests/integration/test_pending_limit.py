"""Who leaves too much to be processed waits, or is refused; nobody works here until told to."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue

import grpc
import psycopg2
import pytest

from ingest.v1.event_pb2 import EventInput
from tests.kit.caller import Caller, Refusal, event, refusal_of, refused
from tests.kit.server import (
    DATABASES,
    Service,
    record,
    running,
    settings_for,
    shared_database,
)
from tests.kit.waiting import eventually

_MOST = 20


@pytest.fixture(scope="module", params=DATABASES)
def bounded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, redis_url: str
) -> Iterator[Service]:
    """A server without workers, where a user may have 20 PENDING events."""
    folder = tmp_path_factory.mktemp("bounded")
    with (
        shared_database(request, folder) as url,
        running(folder, settings_for(url, redis_url, USER_PENDING_EVENTS=str(_MOST))) as server,
    ):
        yield server


def refusal_in_time(caller: Caller) -> Refusal:
    """Submit until refused: the events were counted."""

    def submitted() -> Refusal | None:
        try:
            caller.submit(event())
        except grpc.RpcError as error:
            return refusal_of(error)
        return None

    refusal = eventually(submitted, timeout=10, interval=0.1)
    assert refusal is not None
    return refusal


def count_again(service: Service) -> None:
    """Wait until the events were counted after now: somebody new has too many, and is refused."""
    other = service.caller()
    other.batch([event()] * _MOST)
    refusal_in_time(other)


def is_taken(caller: Caller, *, valid: bool = True) -> bool:
    """Whether an event is taken; one that is not valid is refused after the limits, for itself."""
    try:
        caller.submit(event("page.viewed" if valid else ""))
    except grpc.RpcError as error:
        return refusal_of(error).reason == "FIELD_INVALID"
    return True


def test_who_has_too_many_pending_events_is_refused_until_they_are_processed(
    bounded: Service,
) -> None:
    greedy, modest = bounded.caller(), bounded.caller()
    greedy.batch([event()] * (_MOST - 1))
    count_again(bounded)
    assert is_taken(greedy, valid=False)
    greedy.submit(event())

    refusal = refusal_in_time(greedy)

    assert refusal.verdict == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
    assert refusal.retry_delay == 1
    assert modest.is_served()
    assert greedy.counts()["PENDING"] >= _MOST
    bounded.process_all(greedy)
    eventually(lambda: is_taken(greedy), timeout=10, interval=0.1)


def test_a_stream_waits_until_they_are_processed(bounded: Service) -> None:
    greedy = bounded.caller()
    greedy.batch([event()] * _MOST)
    refusal_in_time(greedy)
    before = greedy.counts()
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(greedy.stream, [[event()] * 3])
        count_again(bounded)
        assert greedy.counts() == before
        assert not stream.done()
        bounded.process_all(greedy)

        assert stream.result(10).accepted == 3


def test_a_stream_that_is_open_takes_no_message_of_a_user_who_has_too_many(
    bounded: Service,
) -> None:
    """Neither a small one nor a large one; each is taken when there is room."""
    greedy = bounded.caller()
    messages: list[SimpleQueue[list[EventInput] | None]] = [SimpleQueue(), SimpleQueue()]
    large = [event(payload="x" * 1_000)] * 100
    with ThreadPoolExecutor(2) as pool:
        streams = [pool.submit(greedy.stream, iter(one.get, None)) for one in messages]
        for one in messages:
            one.put([event()])
        eventually(lambda: greedy.counts() == {"PENDING": 2})
        greedy.batch([event()] * (_MOST - 2))
        refusal_in_time(greedy)
        before = greedy.counts()
        for one, sent in zip(messages, ([event()] * 50, large), strict=True):
            one.put(sent)
            one.put(None)
        count_again(bounded)
        assert greedy.counts() == before
        assert not any(stream.done() for stream in streams)
        bounded.process_all(greedy)

        assert [stream.result(10).accepted for stream in streams] == [51, 101]


def test_while_nothing_can_be_counted_the_last_count_stands(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Somebody holds the table: who had too many is refused at once, without asking it."""
    env = settings_for(database_url, redis_url, USER_PENDING_EVENTS=str(_MOST))
    with running(tmp_path, env) as server, closing(psycopg2.connect(database_url)) as other:
        greedy = server.caller()
        greedy.batch([event()] * _MOST)
        refusal_in_time(greedy)
        with other.cursor() as cursor:
            cursor.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        eventually(lambda: record(server.process, "storage_unavailable"), timeout=15)
        while_locked = refused(greedy.submit, event())
        other.rollback()
        server.process_all(greedy)
        eventually(lambda: is_taken(greedy), timeout=15, interval=0.1)

    assert while_locked.verdict[1] == "RATE_LIMITED"
