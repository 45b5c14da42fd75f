"""How a process that runs for months keeps its memory together; all of it is glibc's."""

import ctypes
import threading
import time
from contextlib import suppress

#: From <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_ARENAS = 2
#: Bytes of a piece from which on the kernel is asked for it alone, and of free memory at the end of
#: an arena that is given back at once. With the defaults each group of large events is paged in
#: anew, which takes a seventh of the server's time for them.
_ALONE = 16 << 20
_KEPT = 32 << 20
#: Seconds between two times that free memory is given back.
_PAUSE = 30.0


def keep_together() -> None:
    """Have threads share two arenas, and give back what is free now and then; starts a thread.

    By default each thread may get an arena of its own, and what a burst leaves behind in them is
    kept: a process grows with each burst that is larger than all before. Other C libraries have
    nothing of this, and nothing is done there. Call this before there are many threads.
    """
    libc = ctypes.CDLL(None)
    with suppress(AttributeError):
        libc.mallopt(_M_ARENA_MAX, _ARENAS)
        libc.mallopt(_M_MMAP_THRESHOLD, _ALONE)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)
        libc.malloc_trim(0)
        threading.Thread(target=_give_back, args=(libc,), name="memory", daemon=True).start()


def _give_back(libc: ctypes.CDLL) -> None:
    while True:
        time.sleep(_PAUSE)
        libc.malloc_trim(0)
