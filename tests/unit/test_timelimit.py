"""The time limit of a worker's actors: it ends what is in it, and nothing else."""

import ctypes
import threading
import time
from contextlib import suppress

import pytest

from worker.timelimit import OutOfTime, TimeLimit

SECONDS = 0.01
SET_ASYNC_EXCEPTION = ctypes.pythonapi.PyThreadState_SetAsyncExc


def limit_of(seconds: float) -> TimeLimit:
    made = TimeLimit(seconds)
    made.start()
    return made


def spin(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def test_work_that_takes_too_long_is_ended() -> None:
    with pytest.raises(OutOfTime), limit_of(SECONDS).limited():
        spin(60)


def test_work_is_struck_once_and_may_clean_up() -> None:
    with limit_of(SECONDS).limited():
        with pytest.raises(OutOfTime):
            spin(60)
        spin(10 * SECONDS)


def test_work_that_is_done_in_time_is_left_alone() -> None:
    limit = limit_of(0.5)
    for _ in range(20):
        with limit.limited():
            pass
    spin(0.7)


def test_a_strike_at_the_moment_that_work_ends_does_not_follow_it_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What strikes later would end a worker's thread for good."""
    time_is_up, work_is_done = threading.Event(), threading.Event()

    def hesitate(thread: int, exception: object) -> None:
        if exception is OutOfTime:
            time_is_up.set()
            work_is_done.wait(10)
        SET_ASYNC_EXCEPTION(thread, exception)

    monkeypatch.setattr("worker.timelimit._set_async_exception", hesitate)
    limit = limit_of(SECONDS)
    for _ in range(20):
        with suppress(OutOfTime), limit.limited():
            time_is_up.wait(10)
            work_is_done.set()
        spin(5 * SECONDS)
        time_is_up.clear()
        work_is_done.clear()
