"""Fixtures for every test: databases, brokers and processes, each one private and ended."""

import gc
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis

from tests.kit.databases import close_database, fresh_database
from tests.kit.days import day, one_day
from tests.kit.processes import Processes
from tests.kit.services import start_postgres, start_redis
from tests.kit.turns import turn

__all__ = ["one_day"]

pytest_plugins = ("tests.faults.options",)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run the rows of the fault table alone, if they judge times."""
    with turn(alone=_is_alone(item)):
        return (yield)


def pytest_collection_finish() -> None:
    """Have garbage collected without a walk through thousands of tests each time."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what may share the machine: who runs alone has the others wait."""
    items.sort(key=_is_alone)


def _is_alone(item: pytest.Item) -> bool:
    marks = {mark.name for mark in item.iter_markers()}
    return "row" in marks and "beside_others" not in marks


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Where a PostgreSQL is, as a user who may create databases: given, or one of our own."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield given
        return
    server = start_postgres()
    yield server.url
    server.remove()


@pytest.fixture(scope="session")
def redis_url(worker_id: str) -> Iterator[str]:
    """Where a Redis is, used by these tests alone: an unused database as given, or one of ours.

    Workers of pytest-xdist take the databases that follow the given one.
    """
    if given := os.environ.get("TEST_REDIS_URL"):
        parts = urlsplit(given)
        number = int(parts.path.strip("/") or 0)
        if worker_id != "master":
            number += int(worker_id.removeprefix("gw"))
        url = urlunsplit(parts._replace(path=f"/{number}"))
        with redis.Redis.from_url(url) as client:
            assert client.dbsize() == 0, f"TEST_REDIS_URL: database {number} is in use"
            yield url
            client.flushdb()
        return
    server = start_redis()
    yield server.url
    server.remove()


@pytest.fixture
def broker_url(redis_url: str) -> str:
    """Where a Redis is, emptied for this test."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    return redis_url


@pytest.fixture(scope="session")
def migrated_template(postgres_url: str) -> Iterator[Callable[[], str]]:
    """Return the name of a database that was migrated today (UTC), to be copied for each test."""
    from eventstore import migrations  # noqa: PLC0415 - tests of the kit alone go without it

    with ExitStack() as made:

        @cache
        def migrated_on(_day: str) -> str:
            url = made.enter_context(fresh_database(postgres_url))
            migrations.upgrade(url)
            return close_database(postgres_url, url)

        yield lambda: migrated_on(day())


@pytest.fixture
def database_url(postgres_url: str, migrated_template: Callable[[], str]) -> Iterator[str]:
    """Where a migrated, empty database is, for this test alone."""
    with fresh_database(postgres_url, migrated_template()) as url:
        yield url


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """Where a database without any table is, for this test alone."""
    with fresh_database(postgres_url) as url:
        yield url


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Start real processes; all are ended after the test."""
    folder = tmp_path / "processes"
    folder.mkdir()
    started = Processes(folder)
    yield started
    started.close()
