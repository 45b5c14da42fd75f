"""A writer far from its database: a large group with keys goes there and back once."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from sqlalchemy import make_url

from eventstore.accept import Verdicts
from eventstore.clock import DatabaseClock
from eventstore.engine import build_engine
from eventstore.values import Duplicate, KeyConflict, Submission
from ingest_service.writer import Writer
from tests.integration.test_accept import ALICE, made
from tests.kit.proxy import Proxy

#: Seconds each way, and there and back.
LATENCY = 0.2
ROUND_TRIP = 2 * LATENCY
#: Events of a group that near its database would be a transaction of five round trips.
MANY = 300

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
        prefix: str, events: int = MANY, *, atomic: bool = False, last: str = ""
    ) -> tuple[Verdicts, float]:
        rows = [made(f"{n}", f"{prefix} {n}") for n in range(events)]
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
    write("near")
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
