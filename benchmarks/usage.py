"""What processes cost: CPU time and memory of a process and all that it started, from /proc."""

import ctypes
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

#: From <linux/prctl.h>.
_PR_SET_CHILD_SUBREAPER = 36
_TICK = 1 / os.sysconf("SC_CLK_TCK")


def cpu_seconds(root: int) -> float:
    """Return the CPU time so far of a process, its descendants, and those already reaped."""
    return _TICK * sum(_ticks(pid) for pid in tree(root))


def loop_seconds(pid: int) -> float:
    """Return the CPU time so far of a process's first thread, in which a server's loop runs."""
    return _TICK * sum(_fields(Path(f"/proc/{pid}/task/{pid}/stat"))[:2])


def thread_seconds(pid: int) -> dict[int, float]:
    """Return the CPU time so far of each thread of a process."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {int(task.name): _TICK * sum(_fields(task / "stat")[:2]) for task in tasks}


def peak_rss_mb(root: int) -> float:
    """Return the largest resident megabytes that the processes of a tree ever had, added up."""
    return sum(_status_kb(pid, "VmHWM") for pid in tree(root)) * 1_024 / 1e6


def anonymous_mb(root: int) -> float:
    """Return the resident megabytes of a tree's processes that are of no file.

    What grows is here. Pages of files come and go with the kernel's need of memory.
    """
    return sum(_status_kb(pid, "RssAnon") for pid in tree(root)) * 1_024 / 1e6


def adopt_orphans() -> None:
    """Have the kernel give us the children of what we kill, so that their CPU time stays ours."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class CpuMeter:
    """The CPU time that named process trees use between `start` and `stop`."""

    def __init__(self, roots: Mapping[str, Iterable[int]]) -> None:
        """Take the process ids of each component."""
        self._roots = {name: list(pids) for name, pids in roots.items()}
        self._before = self._read()

    def stop(self) -> dict[str, float]:
        """Return seconds by component since this meter was made."""
        after = self._read()
        return {name: after[name] - self._before[name] for name in after}

    def _read(self) -> dict[str, float]:
        return {name: sum(map(cpu_seconds, pids)) for name, pids in self._roots.items()}


def tree(root: int) -> list[int]:
    """Return a process and all that it started, as far as they have not ended."""
    found = [root]
    for pid in found:
        try:
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
            children = [
                child for task in tasks for child in (task / "children").read_text().split()
            ]
        except OSError:
            continue  # ended meanwhile; its parent has its times once it is reaped
        found += map(int, children)
    return found


def _ticks(pid: int) -> int:
    """User and system time, of the process itself and of its reaped children."""
    return sum(_fields(Path(f"/proc/{pid}/stat")))


def _fields(stat: Path) -> list[int]:
    """Return utime, stime, cutime and cstime, or nothing when the process has ended."""
    try:
        return [int(field) for field in stat.read_text().rpartition(")")[2].split()[11:15]]
    except OSError:
        return []


def _status_kb(pid: int, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)
