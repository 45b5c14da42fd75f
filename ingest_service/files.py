"""Files which an operator may replace at any time: their content, or an error within seconds."""

import asyncio
import errno
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")

#: Bytes that a file of keys, certificates or revocations may have. To parse so much as JSON takes
#: up to 70 ms, for which Python lets nobody else work.
MOST_BYTES = 1 << 20
#: Seconds that a reading may take: a file system may not answer for as long as it likes.
READ_SECONDS = 3.0
#: Readings without an answer, each of which holds a thread, until no more are begun.
_MOST_STUCK = 8


class FileContent(NamedTuple):
    """What a file held."""

    data: bytes
    #: Another one when the file is another one, or was written to.
    stamp: tuple[int, int, int]


def read_file(path: Path) -> FileContent:
    """Read a regular file of at most MOST_BYTES; raises OSError, with a `strerror`."""
    # Without O_NONBLOCK a FIFO that nobody writes to does not even open.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        with open(descriptor, "rb", closefd=False) as opened:  # it has no path
            data = opened.read(MOST_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MOST_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MOST_BYTES} bytes")
    return FileContent(data, (status.st_mtime_ns, status.st_size, status.st_ino))


def cause(error: Exception) -> str:
    """Return why a file cannot be used, without its name: a secret may stand in place of it."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error) if isinstance(error, ValueError) else type(error).__name__


class Aside:
    """Runs work in threads which, unlike those of asyncio, the end of the process awaits not.

    What never answers keeps its thread; of those there are a few at most.
    """

    def __init__(self, name: str) -> None:
        """Take the name of the threads."""
        self._name = name
        self._free = threading.Semaphore(_MOST_STUCK)

    def begin(self, work: Callable[[], T]) -> Future[T]:
        """Begin work; raises TimeoutError when too much of it has not come back."""
        if not self._free.acquire(blocking=False):
            raise _late()
        done = Future[T]()
        done.set_running_or_notify_cancel()  # so that whoever stops waiting does not take it away

        def run() -> None:
            try:
                result = work()
            except Exception as error:  # noqa: BLE001  # it is raised where the result is awaited
                self._free.release()
                done.set_exception(error)
            else:
                self._free.release()
                done.set_result(result)

        try:
            threading.Thread(target=run, name=self._name, daemon=True).start()
        except RuntimeError:  # no thread can be had
            self._free.release()
            raise
        return done

    def wait_for(self, work: Callable[[], T], seconds: float | None = None) -> T:
        """Do work and wait for it; raises TimeoutError, with a `strerror`, when it takes longer."""
        begun = self.begin(work)
        try:
            return begun.result(seconds or READ_SECONDS)
        except TimeoutError as error:
            raise error if begun.done() else _late() from None

    async def result(self, work: Callable[[], T], seconds: float | None = None) -> T:
        """Do work and await it, as `wait_for` does; what comes later is dropped."""
        begun = self.begin(work)
        try:
            # Not asyncio.wait_for: before Python 3.12 a result at that moment undoes a cancel.
            async with asyncio.timeout(seconds or READ_SECONDS):
                return await asyncio.wrap_future(begun)
        except TimeoutError as error:
            raise error if begun.done() else _late() from None


def _late() -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, "reading it takes too long")
