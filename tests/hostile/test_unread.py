"""Readers who ask for large answers and do not read them: they hold no more than their share."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from ingest.v1 import event_pb2
from ingest.v1 import ingest_service_pb2 as pb
from tests.hostile.frames import Connection, connections, message
from tests.hostile.test_streams import is_served_within
from tests.hostile.vitals import rss
from tests.kit.caller import Caller, event
from tests.kit.server import Service
from tests.kit.waiting import eventually

JSON = event_pb2.PAYLOAD_FORMAT_JSON
LARGE = "x" * 3_900_000
#: Large answers that one user may leave unread: half of 32 MiB.
SHARE = 4
#: What may be held by all together, in memory twice, and what the reader's threads have in hand.
MOST_MORE = 150 << 20
RESOURCE_EXHAUSTED, UNAVAILABLE = (
    str(code.value[0]) for code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
)


class Hog(Caller):
    """Somebody with a large event, who asks for it and reads no answer."""

    def __init__(self, service: Service) -> None:
        """Store the event."""
        known = service.caller()
        super().__init__(known.channel, known.token, known.subject)
        self.event_id = self.submit(event(payload=LARGE)).event_id

    def ask(self, connection: Connection, **fields: str) -> int:
        """Ask for the event, and return the call's number."""
        request = pb.GetEventRequest(event_id=self.event_id, payload_format=JSON)
        body = message(request.SerializeToString())
        return connection.open("GetEvent", self, body, end=True, **fields)

    def ask_for_a_page(self, connection: Connection) -> int:
        """Ask for a page that holds the event, and return the call's number."""
        request = pb.ListEventsRequest(payload_format=JSON)
        body = message(request.SerializeToString())
        return connection.open("ListEvents", self, body, end=True)


@pytest.fixture(scope="module", autouse=True)
def _warm(service: Service) -> None:
    """Let the readers' connections have what they keep for large results: it is not held here."""
    reader = Hog(service)
    with ThreadPoolExecutor(8) as pool:
        for answer in [pool.submit(reader.get, reader.event_id) for _ in range(8)]:
            answer.result()


@pytest.fixture
def small(service: Service) -> Callable[[], None]:
    """Somebody else, who reads a small event and a page of it."""
    reader = service.caller()
    event_id = reader.submit(event(payload="small")).event_id

    def read() -> None:
        assert reader.get(event_id).event_id == event_id
        assert [found.event_id for found in reader.list().events] == [event_id]

    return read


def test_one_who_reads_no_answers_holds_a_share_of_memory(
    service: Service, small: Callable[[], None]
) -> None:
    """120 answers of 3.9 MB over four connections, half of them pages: four are held."""
    hog = Hog(service)
    before = rss(service)
    with connections(service.port, 4, window=0) as made:
        asking = [(one, ask) for one in made for ask in (hog.ask, hog.ask_for_a_page)] * 15
        calls = [(one, ask(one)) for one, ask in asking]
        while len(refusals(calls)) < len(calls) - SHARE:
            small()
            time.sleep(0.05)  # to leave the machine to the server
        assert 1 <= sum(len(one.begun()) for one in made) <= SHARE
        assert {*refusals(calls)} == {RESOURCE_EXHAUSTED, ""}
        assert rss(service) - before < MOST_MORE
        assert is_served_within(service, 1.0)
    assert hog.get(hog.event_id, payload_format=JSON).event_id == hog.event_id


def test_many_who_read_no_answers_leave_room_for_others(
    service: Service, small: Callable[[], None]
) -> None:
    """Twelve users with ten answers each: what all of them hold is bounded, too."""
    hogs = [Hog(service) for _ in range(12)]
    before = rss(service)
    with connections(service.port, len(hogs), window=0) as made:
        asking = [*zip(made, hogs, strict=True)] * 10
        calls = [(one, hog.ask(one)) for one, hog in asking]
        while len(refusals(calls)) < len(calls) - 2 * SHARE:
            small()
            time.sleep(0.05)  # as above
        assert {*refusals(calls)} <= {RESOURCE_EXHAUSTED, UNAVAILABLE, ""}
        assert rss(service) - before < MOST_MORE
        assert is_served_within(service, 1.0)
    for hog in hogs:
        assert hog.get(hog.event_id, payload_format=JSON).event_id == hog.event_id


def cancelled(_: Connection, calls: list[tuple[Connection, int]]) -> None:
    for connection, stream in calls:
        connection.reset(stream)


def cut_off(connection: Connection, _: object) -> None:
    connection.close()


def left(*_: object) -> None:
    pass


@pytest.mark.parametrize(
    "end, fields",
    [(cancelled, {}), (cut_off, {}), (left, {"grpc_timeout": "3S"})],
    ids=["cancelled", "cut off", "out of time"],
)
def test_what_was_held_is_free_when_a_call_ends(
    service: Service, end: Callable[..., None], fields: dict[str, str]
) -> None:
    """Three times over a share is held: were some of it lost, the next time less would fit."""
    hog = Hog(service)
    for _ in range(3):
        with connections(service.port, 1, window=0) as (connection,):
            calls = [(connection, hog.ask(connection, **fields)) for _ in range(SHARE)]
            eventually(lambda c=connection: len(c.begun()) == SHARE, timeout=20)  # type: ignore[misc]
            end(connection, calls)
            if end is left:
                eventually(lambda c=connection: len(c.ended()) == SHARE, timeout=20)  # type: ignore[misc]


def test_calls_that_end_while_they_wait_for_room_take_none(service: Service) -> None:
    hog = Hog(service)
    with connections(service.port, 3, window=0) as (holding, waiting, more):
        for _ in range(SHARE):
            hog.ask(holding)
        eventually(lambda: len(holding.begun()) == SHARE, timeout=20)
        waiters = [hog.ask(waiting) for _ in range(SHARE)]
        for stream in waiters[::2]:
            waiting.reset(stream)
        assert hog.counts() == {"PENDING": 1}
        holding.close()
        waiting.close()
        for _ in range(SHARE):
            hog.ask(more)
        eventually(lambda: len(more.begun()) == SHARE, timeout=20)


def test_who_holds_less_than_another_is_not_the_one_to_blame(service: Service) -> None:
    """It is told that the server is busy, and not that it asks for too much."""
    most, less = Hog(service), Hog(service)
    with connections(service.port, 2, window=0) as (its, theirs):
        for _ in range(SHARE):
            most.ask(its)
        eventually(lambda: len(its.begun()) == SHARE, timeout=20)
        calls = [(theirs, less.ask(theirs)) for _ in range(SHARE)]
        eventually(lambda: len(refusals(calls)) == SHARE // 2, timeout=20)
        assert {*refusals(calls)} <= {UNAVAILABLE, ""}
        assert len(theirs.begun()) == SHARE // 2


@pytest.mark.parametrize("payload", ["small", "x" * 400_000])
def test_who_reads_64_answers_at_once_is_never_refused(service: Service, payload: str) -> None:
    """Small or large, by three users at once: calls wait for room instead."""
    readers = [service.caller() for _ in range(3)]
    ids = [reader.submit(event(payload=payload)).event_id for reader in readers]
    wanted = [*zip(readers, ids, strict=True)] * 64
    with ThreadPoolExecutor(64) as pool:
        answers = [pool.submit(reader.get, event_id) for reader, event_id in wanted]
        assert [answer.result().event_id for answer in answers] == [*ids] * 64


def refusals(calls: list[tuple[Connection, int]]) -> list[str]:
    """Return the statuses of the calls that were refused up to now."""
    return [
        connection.ended()[stream] for connection, stream in calls if stream in connection.ended()
    ]
