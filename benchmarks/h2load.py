"""h2load (Debian nghttp2-client): posts prepared bodies, times each request, is timed itself."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_FINISHED = re.compile(r"finished in ([0-9.]+)(us|ms|s|m)\b")
_REQUESTS = re.compile(r"requests: (\d+) total.* (\d+) succeeded, (\d+) failed")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


class LoadError(Exception):
    """h2load is missing, or requests failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What h2load did: h2load sees HTTP alone, so what was stored is counted in the database."""

    seconds: float
    requests: int
    #: CPU time of h2load itself.
    cpu_seconds: float
    #: Start in microseconds since 1970 and seconds until the end of each response, by start.
    timings: list[tuple[int, float]] = field(repr=False)

    @property
    def latencies(self) -> list[float]:
        """Seconds from send to the end of the response."""
        return [seconds for _, seconds in self.timings]


def post(
    target: str,
    body: Path,
    folder: Path,
    *,
    requests: int,
    connections: int = 1,
    in_flight: int = 1,
    headers: Sequence[str] = (),
    options: Sequence[str] = (),
) -> Load:
    """Post a body so many times; `in_flight` is for each connection.

    Raises LoadError when a request was not answered with HTTP 200.
    """
    program = shutil.which("h2load")
    if program is None:
        raise LoadError("h2load is missing: install nghttp2-client (Debian, Ubuntu)")
    log = folder / "h2load.log"
    command = [
        program,
        *("--requests", str(requests), "--clients", str(connections)),
        *("--max-concurrent-streams", str(in_flight), "--data", str(body)),
        *(part for header in headers for part in ("--header", header)),
        *("--log-file", str(log), *options, target),
    ]
    log.unlink(missing_ok=True)
    with (folder / "h2load.out").open("w+") as out:
        popen = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(popen.pid, 0)
        popen.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        said = out.read()
    finished, counted = _FINISHED.search(said), _REQUESTS.search(said)
    if not finished or not counted or counted[1] != counted[2] or counted[3] != "0":
        raise LoadError(said)
    timings = _read_log(log)
    if len(timings) != requests:
        raise LoadError(f"{len(timings)} of {requests} requests in the log:\n{said}")
    return Load(
        seconds=float(finished[1]) * _UNITS[finished[2]],
        requests=int(counted[2]),
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        timings=timings,
    )


def _read_log(log: Path) -> list[tuple[int, float]]:
    timings = []
    for line in log.read_text().splitlines():
        try:
            start, status, microseconds = map(int, line.split("\t")[:3])
        except ValueError:
            raise LoadError(f"not a line of h2load's log: {line!r}") from None
        if status != 200:
            raise LoadError(f"HTTP status {status}")
        timings.append((start, microseconds / 1e6))
    return sorted(timings)
