"""How often a second the disk under the database can be written to for good."""

import re
import subprocess

from benchmarks.sample import Sample
from benchmarks.stack import Bench
from tests.kit.services import find_postgres

_RATE = re.compile(r"^\s*fdatasync\s+([0-9.]+) ops/sec", re.MULTILINE)


def fsync_rate(bench: Bench) -> Sample:
    """Return 8 kB writes with fdatasync a second, by PostgreSQL's pg_test_fsync."""
    file = bench.folder / "fsync"
    command = [str(find_postgres() / "pg_test_fsync"), "-s", "1", "-f", str(file)]
    said = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    found = _RATE.search(said)
    if found is None:
        raise RuntimeError(said)
    return Sample(value=float(found[1]))
