"""A writer far from its database: a large group with keys goes there and back once."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from sqlalchemy import bindparam, make_url, select

from eventstore.accept import Verdicts
from eventstore.clock import DatabaseClock
from eventstore.engine import build_engine
from eventstore.schema import events, idempotency_keys
from eventstore.values import Duplicate, KeyConflict, NotStorable, Submission
from ingest_service.writer import _SLOW_SECONDS, Writer
from tests.integration.test_accept import ALICE, made
from tests.kit.proxy import Proxy
from tests.kit.waiting import eventually

#: Seconds each way, and there and back.
LATENCY = 0.2
ROUND_TRIP = 2 * LATENCY
#: Events of a group that near its database would be a transaction of five round trips.
MANY = 300

_KEYS = select(idempotency_keys.c.key, idempotency_keys.c.event_id).where(
    idempotency_keys.c.user_id == bindparam("user_id")
)
_EVENTS = select(events.c.id).where(events.c.user_id == bindparam("user_id"))

#: Round trips that are no reason to ask for the distance.
QUICK = _SLOW_SECONDS / ROUND_TRIP

Write = Callable[..., tuple[Verdicts, float]]


@pytest.fixture
def line(database_url: str) -> Iterator[Proxy]:
    port = make_url(database_url).port
    assert port
    with closing(Proxy(port)) as proxy:
        yield proxy


@pytest.fixture
def write(database_url: str, line: Proxy) -> Iterator[Write]:
    """Write a group whose keys begin like this; returns verdicts and round trips."""
    url = make_url(database_url).set(host="127.0.0.1", port=line.port)
    engine = build_engine(url.render_as_string(hide_password=False), name="far", pool_size=1)
    writer = Writer(engine, DatabaseClock(), grace_seconds=60)

    def write(
        prefix: str, count: int = MANY, *, atomic: bool = False, last: str = ""
    ) -> tuple[Verdicts, float]:
        rows = [made(f"{n}", f"{prefix} {n}") for n in range(count)]
        if last:
            rows[-1] = made("other", last)
        began = time.monotonic()
        (verdicts,), _ = writer.write([Submission(ALICE, rows, atomic=atomic, size=1)])
        return verdicts, (time.monotonic() - began) / ROUND_TRIP

    yield write
    writer.disconnect()
    engine.dispose()


def test_a_large_group_takes_one_round_trip_once_the_distance_is_known(
    line: Proxy, write: Write
) -> None:
    """It is asked for after the first slow transaction; a taken key costs another round trip.

    Asking, and preparing a statement, cost one more each, the first time.
    """
    # A group that was slow for another reason has the distance asked for, with the next one.
    eventually(lambda: write("near")[1] < QUICK)
    line.latency = LATENCY

    assert write("slow")[1] >= 4
    assert write("asking")[1] < 4
    assert write("far")[1] < 2
    verdicts, trips = write("far")
    assert [type(verdict) for verdict in verdicts.values()] == [Duplicate] * MANY
    assert trips < 4


def test_a_slow_small_group_tells_the_distance_as_well(line: Proxy, write: Write) -> None:
    """It is one statement anyway; the large one behind it must not be the first to find out."""
    write("near", 10)
    line.latency = LATENCY
    write("slow", 10)

    assert write("asking")[1] < 4
    assert write("far")[1] < 2


def test_an_atomic_batch_takes_three_round_trips_and_is_stored_whole_or_not(
    line: Proxy, write: Write
) -> None:
    """A known batch takes four, and preparing its look-up one; only a conflict begins it anew."""
    write("near")
    line.latency = LATENCY
    write("slow")
    write("asking")

    verdicts, trips = write("batch", atomic=True)
    assert not verdicts
    assert trips < 4
    verdicts, trips = write("batch", atomic=True)
    assert [type(verdict) for verdict in verdicts.values()] == [Duplicate] * MANY
    assert trips < 6
    verdicts, _ = write("refused", atomic=True, last="batch 0")
    assert {at: type(verdict) for at, verdict in verdicts.items()} == {MANY - 1: KeyConflict}
    verdicts, _ = write("refused", atomic=True)
    assert not verdicts


class _Claims(DatabaseClock):
    """A clock that says how far the database is, whatever it is."""

    def __init__(self, seconds: float) -> None:
        self._claimed = seconds
        super().__init__()

    @property
    def round_trip(self) -> float:
        return self._claimed

    @round_trip.setter
    def round_trip(self, _measured: float) -> None:
        """Stay with what is claimed."""


def _plans(seed: int) -> Iterator[list[tuple[bool, list[tuple[str, str]]]]]:
    """Groups of submissions: atomic or not, and content and key of each event; many meet again."""
    choose = random.Random(seed)  # noqa: S311  # the same groups each time
    for number in range(200):
        keys = ["", *(f"k{choose.randrange(300 + 3 * number)}" for _ in range(12))]
        yield [
            (
                choose.random() < 0.6,
                [(choose.choice("ab"), choose.choice(keys)) for _ in range(choose.randint(1, 5))],
            )
            for _ in range(choose.randint(1, 6))
        ]


def _told(
    verdicts: Verdicts, places: dict[str, tuple[int, int, int]]
) -> list[tuple[int, type, tuple[int, int, int]]]:
    """Return what the verdicts say, with the place of an event for its id."""
    return [
        (at, type(verdict), places[verdict.event_id])
        for at, verdict in verdicts.items()
        if not isinstance(verdict, NotStorable)
    ]


def test_far_and_near_decide_alike(database_url: str) -> None:
    """Two users send the same groups, one of them to a writer that believes to be far."""
    decided = []
    for user in (ALICE, ALICE._replace(id="22222222-2222-5222-8222-222222222222")):
        engine = build_engine(database_url, name="alike", pool_size=1, keyed=True)
        writer = Writer(engine, _Claims(0.0 if user is ALICE else 1.0), grace_seconds=60)
        places: dict[str, tuple[int, int, int]] = {"": (-1, -1, -1)}
        said = []
        for number, plan in enumerate(_plans(seed=20261128)):
            group = []
            for at, (atomic, sent) in enumerate(plan):
                rows = [made(content, key, user) for content, key in sent]
                places |= {row.id: (number, at, n) for n, row in enumerate(rows)}
                group.append(Submission(user, rows, atomic=atomic, size=1))
            verdicts, stored = writer.write(group)
            written = sorted(places[event_id] for event_id in stored.get(user.id, []))
            said.append((written, [_told(each, places) for each in verdicts]))
        writer.disconnect()
        with engine.connect() as connection:
            held = connection.execute(_KEYS, {"user_id": user.id}).all()
            kept = connection.execute(_EVENTS, {"user_id": user.id}).scalars()
            decided.append(
                (
                    said,
                    sorted((key, places[event_id]) for key, event_id in held),
                    sorted(places[event_id] for event_id in kept),
                )
            )
        engine.dispose()

    near, far = decided
    assert near == far
