"""How a process that runs for months keeps its memory together."""

import ctypes
from contextlib import suppress

#: From <malloc.h>.
_M_ARENA_MAX = -8
_ARENAS = 2


def bound_arenas() -> None:
    """Have glibc's threads share two arenas; call this before there are many threads.

    By default each thread may get one of its own, and what bursts leave behind in them is never
    given back. Other C libraries have no such setting, and need none.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
