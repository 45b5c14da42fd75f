"""The threads beside the event loop: what they leave to others."""

import asyncio
import threading
import time

from ingest_service.offload import Offload


def work(seconds: float) -> float:
    """Compute for so long, and return when it was done."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass
    return time.monotonic()


async def test_a_thread_that_rests_does_so_for_as_long_as_it_worked() -> None:
    offload = Offload("test", threads=1, waiting=10, rests=True)
    try:
        done = await offload.run("user", lambda: work(0.3))
        told = time.monotonic()
        next_begun = await offload.run("user", time.monotonic)
    finally:
        offload.close()

    assert next_begun - done >= 0.3
    # Nobody waits for the rest where nothing follows.
    assert told - done < 0.15


async def test_all_threads_are_there_from_the_start() -> None:
    """Later there may be no memory for one."""
    offload = Offload("early", threads=3, waiting=1)
    try:
        assert len(offload_threads("early")) == 3
        assert await asyncio.wait_for(offload.run("user", lambda: 1), 10) == 1
    finally:
        offload.close()


def offload_threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"{name}_")]
