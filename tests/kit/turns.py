"""Whose turn it is, among the processes of one test run: one alone, or all others together."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Any two files that all processes see: a lock leaves no trace in them.
_DOOR, _ROOM = Path(__file__), Path(__file__).with_name("__init__.py")


@contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Wait for a turn, and keep it; without pytest-xdist there is nobody to wait for."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    with _DOOR.open() as door, _ROOM.open() as room:
        # Who waits for the room holds the door, so that nobody slips in before.
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield
