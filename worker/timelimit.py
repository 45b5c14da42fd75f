"""Ends work that takes too long; knows neither broker nor events.

Dramatiq's own time limit may strike a thread that has just left its actor, when the process stood
still for a while: the exception then escapes into Dramatiq's loop and ends that thread for good.
Here whoever leaves a limit is out of its reach.
"""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Looks at the clock within the limit.
_LOOKS = 10

_set_async_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exception.argtypes = (ctypes.c_ulong, ctypes.py_object)
#: NULL, which takes back an exception that has not been raised yet.
_NOTHING: "ctypes.py_object[None]" = ctypes.py_object()


class OutOfTime(BaseException):
    """Raised in work that took too long; no Exception, so that no enricher swallows it."""


class TimeLimit:
    """Raises OutOfTime in threads whose work takes too long, from a thread of its own.

    It strikes between two instructions of Python: a call into C, such as a query, is ended by
    other means (statement_timeout, the watchdog) and struck when it returns.
    """

    def __init__(self, seconds: float) -> None:
        """Take the limit; `start` starts the thread."""
        self._seconds = seconds
        self._lock = threading.Lock()
        #: By thread; who is no longer in here was struck, or has left.
        self._deadlines: dict[int, float] = {}

    def start(self) -> None:
        """Start looking at the clock."""
        threading.Thread(target=self._run, name="time-limit", daemon=True).start()

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Raise OutOfTime in the body, once at most, and never after it."""
        thread = threading.get_ident()
        try:
            with self._lock:
                self._deadlines[thread] = time.monotonic() + self._seconds
            yield
        finally:
            with self._lock:
                if self._deadlines.pop(thread, None) is None:
                    # Struck: what has not been raised by now must not be raised any more.
                    _set_async_exception(thread, _NOTHING)

    def _run(self) -> None:
        while True:
            time.sleep(self._seconds / _LOOKS)
            with self._lock:
                now = time.monotonic()
                late = [thread for thread, until in self._deadlines.items() if until < now]
                for thread in late:
                    del self._deadlines[thread]
                    _set_async_exception(thread, OutOfTime)
