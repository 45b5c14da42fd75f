"""A line to PostgreSQL on which nothing comes back, at statements of every kind."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import grpc
import psycopg2.extensions
import pytest
from sqlalchemy import func, select

from eventstore.accept import accept
from eventstore.schema import users
from eventstore.watchdog import WatchedConnection, WatchedCursor
from tests.kit.caller import Caller, Refusal, event, refused
from tests.kit.days import now
from tests.kit.proxy import Point, Proxy
from tests.kit.rows import new_user
from tests.kit.server import Service, closing_engine, running, settings_for
from tests.kit.waiting import eventually

#: What asks the server nothing, or only forms what is sent by the others.
_QUIET = {
    "cast",
    "close",
    "fetchall",
    "fetchmany",
    "fetchone",
    "mogrify",
    "nextset",
    "scroll",
    "setinputsizes",
    "setoutputsize",
}
#: What nobody here uses: psycopg2's own ways to copy and to call.
_UNUSED = {"callproc", "copy_from", "copy_to"}


@pytest.fixture
def line(database_url: str) -> Iterator[Proxy]:
    """A proxy in front of the database."""
    proxy = Proxy(urlsplit(database_url).port or 5432)
    try:
        yield proxy
    finally:
        proxy.close()


@pytest.fixture
def url(database_url: str, line: Proxy) -> str:
    """Where the database is, by that line."""
    parts = urlsplit(database_url)
    host = parts.netloc.replace(str(parts.port), str(line.port))
    return urlunsplit(parts._replace(netloc=host))


@pytest.fixture
def served(url: str, redis_url: str, tmp_path: Path) -> Iterator[Service]:
    """A server at the other end of the line."""
    with running(tmp_path / "server", settings_for(url, redis_url)) as server:
        yield server


def is_served(caller: Caller) -> bool:
    try:
        return caller.is_served()
    except grpc.RpcError:
        return False


def test_newcomers_who_are_written_together_are_freed_too(served: Service, line: Proxy) -> None:
    """Their users are written first; others are refused meanwhile, in time."""
    known = served.caller()
    known.submit(event())
    newcomers = [served.caller() for _ in range(4)]
    took: list[float] = []

    def submit(number: int) -> Refusal:
        began = time.monotonic()
        refusal = refused(newcomers[number].submit, event())
        took.append(time.monotonic() - began)
        return refusal

    # A group waits on a slow line, behind which the newcomers come together.
    line.latency = 0.4
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(known.submit, event())
        trap = line.trap(b"INTO users", Point.BEFORE)
        freed = [pool.submit(submit, number) for number in range(4)]
        trap.wait()
        line.stall()
        trap.release()
        verdicts = {one.result().verdict for one in freed}
        assert first.result().event_id
        line.latency = 0.0
        line.resume()
        eventually(lambda: is_served(known))

    assert verdicts == {("UNAVAILABLE", "STORAGE_UNAVAILABLE")}
    assert max(took) <= 12


def test_newcomers_are_written_in_time_over_a_slow_line_however_many_they_are(
    url: str, line: Proxy
) -> None:
    """One by one they would take twenty seconds, and be cut off after six, again and again."""
    newcomers = [new_user() for _ in range(200)]
    with closing_engine(url) as engine, engine.begin() as connection:
        line.latency = 0.05
        accept(connection, [], unseen=[*newcomers, newcomers[0]], next_attempt=now())
        written = connection.execute(select(func.count()).select_from(users)).scalar_one()

    assert written == 200


def test_every_way_to_ask_the_database_is_watched() -> None:
    asking = {
        name
        for name in dir(psycopg2.extensions.cursor)
        if not name.startswith("_") and callable(getattr(psycopg2.extensions.cursor, name))
    }
    assert asking - _QUIET - _UNUSED == {name for name in vars(WatchedCursor) if name in asking}
    assert {"commit", "rollback"} <= vars(WatchedConnection).keys()
