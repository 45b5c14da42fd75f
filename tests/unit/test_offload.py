"""The threads beside the event loop: what they leave to others."""

import asyncio
import gc
import threading
import time
import weakref

import pytest

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


class Large:
    """What a call holds."""

    used = False

    def use(self) -> None:
        self.used = True


async def test_what_has_not_begun_is_dropped_with_its_caller() -> None:
    """Each user has one call in the queue of the only thread, which is busy meanwhile."""
    offload, go_on = Offload("left", threads=1, waiting=4), threading.Event()
    try:
        first = asyncio.create_task(offload.run("busy", lambda: go_on.wait(20)))
        for _ in range(3):
            held = [Large() for _ in range(2)]
            calls = [
                asyncio.create_task(offload.run(f"user {number}", large.use))
                for number, large in enumerate(held)
            ]
            await asyncio.sleep(0)  # each begins to wait
            for call in calls:
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
            # Their places are free again, or the third round would find none.
            await asyncio.sleep(0)
            kept = [weakref.ref(large) for large in held]
            del call, calls, held
            gc.collect()
            assert [reference() for reference in kept] == [None, None]
        assert not first.done()
        go_on.set()
        assert await asyncio.wait_for(first, 10)
        assert await asyncio.wait_for(offload.run("user 0", lambda: 1), 10) == 1
    finally:
        go_on.set()
        offload.close()


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
