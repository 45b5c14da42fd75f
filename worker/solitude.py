"""Lets work run beside other work, or alone in its process; knows nothing of what it is."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Solitude:
    """A lock that many share, or one holds alone.

    Who waits to be alone goes before newcomers; of several such, one at a time.
    """

    def __init__(self) -> None:
        """Start with nobody inside."""
        self._changed = threading.Condition()
        self._inside = 0
        self._claimed = False

    @property
    def is_claimed(self) -> bool:
        """Whether somebody is alone inside, or waits for it."""
        return self._claimed

    @contextmanager
    def beside_others(self) -> Iterator[None]:
        """Be inside beside others, as long as nobody is alone or waits for that."""
        with self._changed:
            self._changed.wait_for(lambda: not self._claimed)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                if self._claimed:
                    self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be inside alone, after those who are inside now."""
        with self._changed:
            self._changed.wait_for(lambda: not self._claimed)
            self._claimed = True
            self._changed.wait_for(lambda: not self._inside)
        try:
            yield
        finally:
            with self._changed:
                self._claimed = False
                self._changed.notify_all()
