"""Fixtures of the hostile tests: servers on both databases, each looked at after every test.

HOSTILE_FACTOR multiplies the cases of the fuzzers; the long form takes 100.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from tests.hostile.session import back_to_baseline, observed
from tests.hostile.stopwatch import answering_promptly
from tests.hostile.vitals import staying_well
from tests.kit.server import (
    DATABASES,
    Service,
    Start,
    alice,
    bob,
    running,
    settings_for,
    shared_database,
    store,
    store_url,
)

__all__ = ["alice", "bob", "store", "store_url"]


@pytest.fixture(scope="session", params=DATABASES)
def service(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    redis_url: str,
) -> Iterator[Service]:
    """A server on each of the databases, which all tests together must leave as it was."""
    folder = tmp_path_factory.mktemp("service")
    with shared_database(request, folder) as url:
        env = settings_for(url, redis_url, STREAM_IDLE_SECONDS="2")
        with observed(folder, env) as started, back_to_baseline(started):
            yield started


@pytest.fixture(autouse=True)
def _stays_well(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test on the shared server: a good call succeeds, and all is as it was."""
    if "service" not in request.fixturenames:
        yield
        return
    service = request.getfixturevalue("service")
    with staying_well(service), answering_promptly(service):
        yield


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Start]:
    """Start servers of the test's own; they must stay well, too, and are ended with it."""
    with ExitStack() as opened:
        numbers = count()

        def start(env: Mapping[str, str], command: str = "serve") -> Service:
            folder = tmp_path / f"server-{next(numbers)}"
            started = opened.enter_context(running(folder, env, command))
            opened.enter_context(staying_well(started))
            opened.enter_context(answering_promptly(started))
            return started

        yield start
