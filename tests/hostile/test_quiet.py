"""Connections without calls: asked whether anybody is there, allowed to ask, closed when idle.

All times of the server are divided by 25, so each option must be set for a test to pass: 1.2 s to
a ping, 0.4 s for its answer or between a client's own pings, 12 s without a call.
"""

import time
from collections.abc import Iterator

import pytest

from eventstore import migrations
from tests.hostile.frames import Connection, connections
from tests.hostile.session import INJECT
from tests.kit.server import Service, running, settings_for
from tests.kit.waiting import eventually

FASTER = 25
#: Error codes of RFC 9113, and what gRPC adds.
TOO_MANY_PINGS = b"\0\0\0\x0btoo_many_pings"
IDLE = b"\0\0\0\x02connection idle"


@pytest.fixture(scope="module")
def hasty(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("hasty")
    url = f"sqlite:///{folder / 'ingest.db'}"
    migrations.upgrade(url)
    plant = {"PYTHONPATH": str(INJECT), "FAULTS_PLANT": f"sooner={FASTER}"}
    with running(folder, {**settings_for(url, redis_url), **plant}) as server:
        yield server


@pytest.fixture
def quiet(hasty: Service) -> Iterator[Connection]:
    """A connection without a call."""
    with connections(hasty.port, 1) as (connection,):
        yield connection


def listen(connection: Connection) -> bool:
    """Take what has come, and return whether the connection is closed."""
    connection.ended()
    return connection.is_closed


def ping_for(connection: Connection, seconds: float, pause: float) -> int:
    """Ping with this pause, as long as the server listens; return how often.

    Meanwhile the server's own pings are answered.
    """
    now = time.monotonic()
    end, due, pings = now + seconds, now, 0
    while time.monotonic() < end and not listen(connection) and not connection.goodbyes:
        if time.monotonic() >= due:
            connection.ping()
            due, pings = time.monotonic() + pause, pings + 1
        time.sleep(0.02)  # a part of the pause
    return pings


def test_who_does_not_answer_the_servers_pings_is_disconnected(quiet: Connection) -> None:
    """Within 1.6 seconds; with gRPC's own time for an answer it were 20."""
    quiet.is_alive = False
    eventually(lambda: listen(quiet), timeout=8)
    assert quiet.pinged


def test_who_answers_the_servers_pings_stays_until_idle_for_too_long(quiet: Connection) -> None:
    began = time.monotonic()
    eventually(lambda: listen(quiet) or quiet.goodbyes, timeout=30)

    assert time.monotonic() - began > 12 * 0.7
    assert quiet.pinged > 1
    assert quiet.goodbyes[0] == IDLE


def test_who_pings_as_often_as_clients_are_told_to_is_heard(quiet: Connection) -> None:
    """Every 30 seconds, divided, and without a call: gRPC itself allows one in two hours."""
    pings = ping_for(quiet, 8, 30 / FASTER)

    # The third was too many for gRPC itself.
    assert pings > 3
    assert not quiet.goodbyes
    assert not quiet.is_closed


def test_who_pings_too_often_is_sent_away(hasty: Service, quiet: Connection) -> None:
    ping_for(quiet, 8, 2 / FASTER)

    assert quiet.goodbyes[0] == TOO_MANY_PINGS
    assert hasty.caller().is_served()
