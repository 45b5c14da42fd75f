"""Waiting for a condition instead of sleeping for a guess."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(condition: Callable[[], T], timeout: float = 10.0, interval: float = 0.02) -> T:
    """Return the first true value of `condition`, which is asked every `interval` seconds.

    After `timeout` seconds an AssertionError names the last value. A condition may assert: its
    AssertionError means "not yet", and the last one is the cause of the failure.
    """
    deadline = time.monotonic() + timeout
    while True:
        failure: AssertionError | None = None
        last: T | None = None
        try:
            last = condition()
        except AssertionError as error:
            failure = error
        if last:
            return last
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout} s; last: {failure or last!r}") from failure
        time.sleep(interval)
