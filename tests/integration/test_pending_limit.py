"""Who leaves too much to be processed waits, or is refused; nobody works here until told to."""

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import repeat, takewhile
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import psycopg2
import pytest

from ingest.v1.event_pb2 import EventInput
from tests.hostile.vitals import rss
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
    assert refusal.quotas == {"user": "PENDING events"}
    assert refusal.retry_delay == 1
    assert modest.is_served()
    assert greedy.counts()["PENDING"] >= _MOST
    bounded.process_all(greedy)
    eventually(lambda: is_taken(greedy), timeout=10, interval=0.1)


def processed(service: Service, caller: Caller, streams: Sequence[Future[Any]]) -> bool:
    """Process what there is, and return whether the streams are done."""
    service.process_all(caller)
    return all(stream.done() for stream in streams)


def test_a_stream_waits_unread_until_they_are_processed(bounded: Service) -> None:
    """What it sends meanwhile stays with the client, or in gRPC's buffers."""
    greedy = bounded.caller()
    greedy.batch([event()] * _MOST)
    refusal_in_time(greedy)
    before, memory = greedy.counts(), rss(bounded)
    large = [event(payload="x" * 1_000_000)] * 3
    with ThreadPoolExecutor(12) as pool:
        streams = [pool.submit(greedy.stream, [large], 60) for _ in range(12)]
        count_again(bounded)
        assert greedy.counts() == before
        assert not any(stream.done() for stream in streams)
        assert rss(bounded) - memory < 20 << 20
        bounded.process_all(greedy)

        eventually(lambda: processed(bounded, greedy, streams), timeout=50)
    # One that is read for longer than a second, of which that takes less, may have been refused.
    assert [stream.result().accepted for stream in streams if not stream.exception()][:1] == [3]


def test_a_stream_that_was_quiet_is_refused_like_a_call_when_there_are_too_many(
    bounded: Service,
) -> None:
    """One that goes on all the time is not: it is not read any more."""
    greedy = bounded.caller()
    messages: SimpleQueue[list[EventInput] | None] = SimpleQueue()
    ends = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        quiet = pool.submit(refused, greedy.stream, iter(messages.get, None))
        messages.put([event()])
        eventually(lambda: greedy.counts() == {"PENDING": 1})
        busy = pool.submit(greedy.stream, takewhile(lambda _: not ends.is_set(), repeat([event()])))
        refusal_in_time(greedy)
        count_again(bounded)
        count_again(bounded)
        before = greedy.counts()
        messages.put([event()] * 50)
        refusal = quiet.result(10)
        messages.put(None)

        assert refusal.verdict == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
        assert greedy.counts() == before
        assert not busy.done()
        ends.set()
        eventually(lambda: processed(bounded, greedy, [busy]), timeout=15)
        assert busy.result().accepted > _MOST


def test_a_stream_that_waits_ends_with_its_token(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Nothing that it sent meanwhile is stored when there is room again."""
    revoked = tmp_path / "revoked.json"
    revoked.write_text("{}")
    env = settings_for(
        database_url,
        redis_url,
        USER_PENDING_EVENTS=str(_MOST),
        JWT_REVOCATION_FILE=str(revoked),
    )
    with running(tmp_path / "server", env) as server:
        stolen, other = server.caller("greedy", jti="stolen"), server.caller("greedy", jti="other")
        stolen.batch([event()] * _MOST)
        refusal_in_time(stolen)
        before = other.counts()
        with ThreadPoolExecutor(1) as pool:
            stream = pool.submit(refused, stolen.stream, [[event()] * 3])
            count_again(server)
            revoked.write_text(json.dumps({"jti": ["stolen"]}))
            refusal = stream.result(8)
        assert other.counts() == before

    assert refusal.verdict == ("UNAUTHENTICATED", "TOKEN_INVALID")


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
