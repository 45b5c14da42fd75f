"""What must be as before after every bad input: the process, its memory, connections and log."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakKeyDictionary

from tests.kit.server import Service
from tests.kit.waiting import eventually

#: What one test may leave behind: pools and caches fill up, and freed memory is kept for the next.
_MORE_DESCRIPTORS = 12
_MORE_BYTES = 100 << 20
#: Threads beyond those at the first look at a server, for all tests together: each is started when
#: it is needed first. Four read, one decodes, one watches over statements; the rest is gRPC's own.
_MORE_THREADS = 10
_FIRST_THREADS: WeakKeyDictionary[Service, int] = WeakKeyDictionary()


def rss(service: Service) -> int:
    """Return how many bytes of memory the server holds."""
    pages = Path(f"/proc/{service.process.pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def watching_rss(service: Service) -> Iterator[list[int]]:
    """Give a list that grows by the server's memory every few milliseconds."""
    seen, stopped = [rss(service)], threading.Event()

    def watch() -> None:
        while not stopped.wait(0.005):
            seen.append(rss(service))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        stopped.set()
        watcher.join()


def descriptors(service: Service) -> int:
    """Return how many files and connections the server has open."""
    return len(os.listdir(f"/proc/{service.process.pid}/fd"))  # noqa: PTH208  # only their number


def threads(service: Service) -> int:
    """Return how many threads the server has."""
    status = Path(f"/proc/{service.process.pid}/status").read_text(encoding="ascii")
    return int(status.partition("Threads:")[2].split()[0])


def complaints(service: Service, since: int) -> list[str]:
    """Return what the server logged as an error of its own, from this byte of the log on.

    Whoever was answered INTERNAL or UNKNOWN, read or unread, has left a line here. Whose connection
    broke while an answer was on its way has left gRPC's, and that is no error.
    """
    with service.process._stderr.open("rb") as log:
        log.seek(since)
        lines = log.read().decode(errors="replace").splitlines()
    signs = ('"level": "error"', '"level": "critical"', "Traceback")
    return [
        line[:500]
        for line in lines
        if any(sign in line for sign in signs) and "ExecuteBatchError raised" not in line
    ]


@contextmanager
def staying_well(service: Service) -> Iterator[None]:
    """Have a server afterwards as it was before: it serves at once, and has kept nothing."""
    log = service.process._stderr.stat().st_size
    memory, files = rss(service), descriptors(service)
    most_threads = _FIRST_THREADS.setdefault(service, threads(service)) + _MORE_THREADS
    yield
    if service.process.returncode == 0:
        return  # the test told it to end
    assert service.process.returncode is None, service.process.output()
    if "INGEST_JWT_SECRET" in service.env:
        assert service.caller().is_served()
    assert complaints(service, log) == []
    eventually(lambda: descriptors(service) <= files + _MORE_DESCRIPTORS, timeout=20)
    eventually(lambda: threads(service) <= most_threads, timeout=20)
    assert rss(service) - memory <= _MORE_BYTES
