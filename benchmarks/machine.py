"""What the figures were measured on, in words."""

import os
import platform
import subprocess
import time
from pathlib import Path

from benchmarks.database import Database
from benchmarks.stack import POSTGRES_SETTINGS, Bench

#: Seconds for which the machine is watched before each measurement.
_LOOK_SECONDS = 0.3


def describe(bench: Bench) -> dict[str, str]:
    """Return processor, memory, disk, versions and settings."""
    (version,) = Database(bench.postgres_url).query("SHOW server_version")[0]
    h2load = subprocess.run(["h2load", "--version"], capture_output=True, text=True, check=False)
    return {
        "processor": f"{_field('/proc/cpuinfo', 'model name')}, {os.cpu_count()} cores",
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 2**20:.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "postgresql": version,
        "postgresql settings": ", ".join(f"{k}={v}" for k, v in POSTGRES_SETTINGS.items())
        + "; fsync, full_page_writes and synchronous_commit on",
        "h2load": h2load.stdout.strip(),
        "load average before": f"{os.getloadavg()[0]:.2f}",
    }


def busy_percent() -> float:
    """Return how busy all cores are just now, while this program sleeps: others' doing."""
    before = _cpu_times()
    time.sleep(_LOOK_SECONDS)
    busy, total = (after - then for after, then in zip(_cpu_times(), before, strict=True))
    return 100 * busy / max(1, total)


def _cpu_times() -> tuple[int, int]:
    """Return the ticks of all cores that were not idle, and all of them."""
    times = [int(part) for part in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(times) - times[3] - times[4], sum(times)


def _field(file: str, name: str) -> str:
    for line in Path(file).read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return "?"
