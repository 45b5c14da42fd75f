"""Limits of the kernel for one process and all that it starts, root's too."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.conftest import Case
from tests.kit.waiting import eventually

_ROOT = Path("/sys/fs/cgroup")
#: Files that hold a limit, by controller: of version 1, where each has a tree of its own, and of 2.
_LIMITS = {"memory": ("memory.limit_in_bytes", "memory.max"), "pids": ("pids.max", "pids.max")}


class Cgroup:
    """One cgroup; the tool `cgroup` of FAULTS_PLANT puts a process into it."""

    def __init__(self, folder: Path, limit: str) -> None:
        """Take its folder, and the name of the file with its limit."""
        self.folder = folder
        self._limit = limit

    def limit(self, value: int) -> None:
        """Set bytes of memory, or how many threads there may be."""
        (self.folder / self._limit).write_text(str(value))

    @property
    def tasks(self) -> int:
        """How many threads are in it."""
        return int((self.folder / "pids.current").read_text())


@contextmanager
def cgroup(case: Case, controller: str) -> Iterator[Cgroup]:
    """Make a cgroup of a controller; without the right to do so the row cannot run."""
    if os.geteuid() != 0:
        case.cannot("needs root to make a cgroup")
    unified = (_ROOT / "cgroup.controllers").exists()
    parent = _ROOT if unified else _ROOT / controller
    try:
        if unified:
            (_ROOT / "cgroup.subtree_control").write_text(f"+{controller}")
        folder = Path(tempfile.mkdtemp(prefix="ingest-", dir=parent))
    except OSError as error:
        case.cannot(f"cannot make a cgroup: {error.strerror}")
    try:
        yield Cgroup(folder, _LIMITS[controller][unified])
    finally:
        # Whoever was ended in it is gone a moment later.
        eventually(lambda: _removed(folder))


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True
