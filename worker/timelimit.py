"""Ends work that takes too long, or leaves it behind; knows neither broker nor events.

Dramatiq's own time limit may strike a thread that has just left its actor, when the process stood
still for a while: the exception then escapes into Dramatiq's loop and ends that thread for good.
And nothing strikes a call into C that does not return. Here the work is done in a thread that is
lent for it: whoever asked for it goes on, whatever becomes of that thread.
"""

import ctypes
import queue
import threading
from collections.abc import Callable

_set_async_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exception.argtypes = (ctypes.c_ulong, ctypes.py_object)


class OutOfTime(BaseException):
    """Raised in work that took too long; no Exception, so that no enricher swallows it."""


class NoThread(Exception):
    """Raised when no thread can be started: memory or a limit of the system is used up."""


class TimeLimit:
    """Runs work for so many seconds at most; safe to call from several threads.

    Work that is late gets OutOfTime between two instructions of Python. When that does not end it,
    as in a call into C, its thread is given up.
    """

    def __init__(self, seconds: float, *, grace_seconds: float) -> None:
        """Take the limit, and how long late work has to end; no thread starts yet."""
        self._seconds = seconds
        self._grace = grace_seconds
        self._lock = threading.Lock()
        self._idle: list[_Lent] = []
        self._given_up: list[_Lent] = []

    def run(self, work: Callable[[], None]) -> None:
        """Do the work and raise what it raises, OutOfTime when it took too long.

        After OutOfTime the work may still be going on. Raises NoThread with nothing begun.
        """
        try:
            lent = self._idle.pop()
        except IndexError:
            lent = _start()
        lent.begin(work)
        if lent.is_done(self._seconds):
            error = lent.error
            self._idle.append(lent)
            if error is not None:
                raise error
            return
        # It is never lent again: the strike may come when the work is done.
        lent.strike()
        if not lent.is_done(self._grace):
            with self._lock:
                self._given_up.append(lent)
        raise OutOfTime

    @property
    def stuck(self) -> int:
        """How many threads were given up and have not come back."""
        with self._lock:
            self._given_up = [lent for lent in self._given_up if lent.is_alive()]
            return len(self._given_up)


class _Lent:
    """A thread that does one piece of work after the other, until it is struck."""

    def __init__(self) -> None:
        self._works: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="pipeline", daemon=True)
        self._thread.start()

    def begin(self, work: Callable[[], None]) -> None:
        """Have the work begun."""
        self._works.put(work)

    def is_done(self, seconds: float) -> bool:
        """Wait for so long; `error` has then what the work raised."""
        try:
            self.error = self._answers.get(timeout=seconds)
        except queue.Empty:
            return False
        return True

    def strike(self) -> None:
        """Raise OutOfTime in the thread, which ends with this work."""
        _set_async_exception(self._thread.ident, OutOfTime)
        self._works.put(None)

    def is_alive(self) -> bool:
        """Whether the thread still works."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (work := self._works.get()) is not None:
                self._answers.put(_error_of(work))
                # What the work holds is not kept until the next one.
                del work
        except OutOfTime:
            # Struck on the way out of its work.
            self._answers.put(None)


def _start() -> _Lent:
    try:
        return _Lent()
    except RuntimeError as error:
        # "can't start new thread"
        raise NoThread from error


def _error_of(work: Callable[[], None]) -> BaseException | None:
    try:
        work()
    except BaseException as error:  # noqa: BLE001  # it belongs to whoever asked for the work
        return error
    return None
