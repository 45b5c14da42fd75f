"""What the figures were measured on, in words."""

import os
import platform
import subprocess
import time
from pathlib import Path

from benchmarks.corpus import corpus
from benchmarks.database import Database
from benchmarks.stack import DEFAULT_WORKER_PROCESSES, POSTGRES_SETTINGS, Bench
from benchmarks.usage import cpu_seconds

#: Seconds for which the machine is watched before each measurement.
_LOOK_SECONDS = 0.3


def describe(bench: Bench) -> dict[str, str]:
    """Return commit, processor, memory, versions and settings."""
    (version,) = Database(bench.postgres_url).query("SHOW server_version")[0]
    h2load = subprocess.run(["h2load", "--version"], capture_output=True, text=True, check=False)
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False)
    return {
        "commit": commit.stdout.strip() or "unknown",
        "processor": f"{_field('/proc/cpuinfo', 'model name')}, {os.cpu_count()} cores",
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 2**20:.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "postgresql": version,
        "postgresql settings": ", ".join(f"{k}={v}" for k, v in POSTGRES_SETTINGS.items())
        + "; fsync, full_page_writes and synchronous_commit on",
        "h2load": h2load.stdout.strip(),
        "service": "default settings: 1 server process, "
        f"{DEFAULT_WORKER_PROCESSES} worker process(es), unless a figure's name says otherwise",
        "github corpus": corpus("github").origin,
        "load average before": f"{os.getloadavg()[0]:.2f}",
    }


def busy_percent() -> float:
    """Return how busy all cores are just now, while this program sleeps: others' doing."""
    others = Others()
    time.sleep(_LOOK_SECONDS)  # the look
    return others.percent()


class Others:
    """The CPU that all but this program and what it started use from now on.

    That is other processes, the kernel's own threads and interrupts, and what the hypervisor gave
    to other guests.
    """

    def __init__(self) -> None:
        """Begin to look."""
        self._before = _cpu_times()

    def percent(self) -> float:
        """Return their share of all cores so far, in percent."""
        total, others = (now - then for now, then in zip(_cpu_times(), self._before, strict=True))
        return 100 * max(0.0, others) / max(total, 0.01)


def _cpu_times() -> tuple[float, float]:
    """Return the seconds of all cores, and those in which they worked for others."""
    first = Path("/proc/stat").read_text().splitlines()[0]
    times = [int(part) / os.sysconf("SC_CLK_TCK") for part in first.split()[1:9]]
    busy = sum(times) - times[3] - times[4]
    return sum(times), busy - cpu_seconds(os.getpid())


def _field(file: str, name: str) -> str:
    for line in Path(file).read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return "?"
