"""The time limit of a worker's pipeline: it ends what is in it, and nothing else."""

import ctypes
import subprocess
import sys
import threading
import time

import pytest

from tests.kit.waiting import eventually
from worker.timelimit import OutOfTime, TimeLimit

SECONDS = 0.01
SET_ASYNC_EXCEPTION = ctypes.pythonapi.PyThreadState_SetAsyncExc
#: More than any test waits.
LONG = 60.0


def limit_of(seconds: float, grace: float = LONG) -> TimeLimit:
    return TimeLimit(seconds, grace_seconds=grace)


def spin(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def test_work_that_takes_too_long_is_ended() -> None:
    ended = threading.Event()

    def work() -> None:
        try:
            spin(LONG)
        finally:
            ended.set()

    with pytest.raises(OutOfTime):
        limit_of(SECONDS).run(work)

    assert ended.is_set()


def test_work_is_struck_once_and_may_clean_up() -> None:
    cleaned = threading.Event()

    def work() -> None:
        try:
            spin(LONG)
        except OutOfTime:
            spin(10 * SECONDS)
            cleaned.set()

    with pytest.raises(OutOfTime):
        limit_of(SECONDS).run(work)

    assert cleaned.is_set()


def test_work_that_is_done_in_time_is_left_alone() -> None:
    limit, done = limit_of(LONG), []
    for number in range(20):
        limit.run(lambda number=number: done.append(number))  # type: ignore[misc]  # mypy: a default in a lambda

    assert done == list(range(20))


def test_what_the_work_raises_is_raised_to_whoever_asked_for_it() -> None:
    def work() -> None:
        raise LookupError("canary")

    limit = limit_of(LONG)
    for _ in range(2):
        with pytest.raises(LookupError, match="canary"):
            limit.run(work)


def test_work_that_nothing_ends_is_left_behind() -> None:
    """Waiting for a lock is a call into C, which no exception of Python ends."""
    limit, release = limit_of(SECONDS, grace=SECONDS), threading.Event()
    for _ in range(3):
        with pytest.raises(OutOfTime):
            limit.run(lambda: _wait(release))
    stuck = limit.stuck
    limit.run(lambda: None)
    release.set()

    assert stuck == 3
    eventually(lambda: limit.stuck == 0)


def test_a_strike_at_the_moment_that_work_ends_strikes_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What escaped from its thread would be told by pytest as a warning, and so an error."""
    release = threading.Event()

    def hesitate(thread: int, exception: object) -> None:
        release.set()
        SET_ASYNC_EXCEPTION(thread, exception)

    monkeypatch.setattr("worker.timelimit._set_async_exception", hesitate)
    before = set(threading.enumerate())
    struck, calm = limit_of(SECONDS), limit_of(LONG)
    for _ in range(50):
        release.clear()
        with pytest.raises(OutOfTime):
            struck.run(lambda: _wait(release))
        calm.run(lambda: spin(SECONDS))

    eventually(lambda: len(set(threading.enumerate()) - before) == 1)
    assert struck.stuck == 0


def _wait(release: threading.Event) -> None:
    release.wait(LONG)


NO_MEMORY = """
import resource
from pathlib import Path
from worker.timelimit import NoThread, TimeLimit

begun = []
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(),) * 2)
try:
    TimeLimit(60, grace_seconds=60).run(lambda: begun.append(1))
except NoThread:
    print("no thread", begun)
"""


def test_where_no_thread_can_be_started_no_work_is_begun() -> None:
    process = subprocess.run(
        [sys.executable, "-c", NO_MEMORY], capture_output=True, text=True, check=False
    )

    assert (process.stdout, process.stderr) == ("no thread []\n", "")
