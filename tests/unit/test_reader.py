"""The threads that answer reads: nobody has all of them."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from eventstore.engine import build_engine
from ingest_service.errors import Overloaded
from ingest_service.reader import Reader


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A reader with three threads on a database of its own."""
    engine = build_engine(f"sqlite:///{tmp_path / 'read.db'}", name="test", pool_size=3)
    reader = Reader(engine, threads=3)
    yield reader
    reader.close()
    engine.dispose()


class Slow:
    """A query that takes as long as the test wants, and counts where it runs."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.end = threading.Event()

    def __call__(self, connection: Connection) -> str:
        self.begun.release()
        assert self.end.wait(60)
        return "slow"


def quick(connection: Connection) -> str:
    return "quick"


async def test_who_reads_much_leaves_a_thread_to_the_others(reader: Reader) -> None:
    slow = Slow()
    calls = [asyncio.create_task(reader.read("alice", slow)) for _ in range(10)]
    try:
        for _ in range(2):
            await asyncio.to_thread(slow.begun.acquire)
        assert await reader.read("bob", quick) == "quick"
        assert not slow.begun.acquire(blocking=False), "a third one of hers runs"
    finally:
        slow.end.set()

    assert await asyncio.gather(*calls) == ["slow"] * 10


async def test_a_caller_who_leaves_keeps_its_thread_until_that_is_done(reader: Reader) -> None:
    """Or whoever cancels each call would have all of them."""
    slow = Slow()
    try:
        for _ in range(2):
            call = asyncio.create_task(reader.read("alice", slow))
            await asyncio.to_thread(slow.begun.acquire)
            call.cancel()
        later = [asyncio.create_task(reader.read("alice", slow)) for _ in range(3)]
        assert await reader.read("bob", quick) == "quick"
        later.pop().cancel()
        assert await reader.read("bob", quick) == "quick"
        assert not slow.begun.acquire(blocking=False)
    finally:
        slow.end.set()

    assert await asyncio.gather(*later) == ["slow"] * 2
    assert await reader.read("alice", quick) == "quick"


async def test_who_waits_too_often_is_refused_and_the_others_are_not(reader: Reader) -> None:
    slow = Slow()
    calls = [asyncio.create_task(reader.read("alice", slow)) for _ in range(96)]
    try:
        await asyncio.to_thread(slow.begun.acquire)
        with pytest.raises(Overloaded):
            await reader.read("alice", quick)
        assert await reader.read("bob", quick) == "quick"
    finally:
        slow.end.set()

    assert await asyncio.gather(*calls) == ["slow"] * 96
