"""How often a second the disk under the database can be written to for good."""

import os
import time

from benchmarks.sample import Sample
from benchmarks.stack import Bench

_BLOCK = bytes(8192)
_SECONDS = 2.0


def fsync_rate(bench: Bench) -> Sample:
    """Return 8 kB writes with fdatasync a second, over the same block of a file that is there."""
    file = os.open(bench.folder / "fsync", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(file, _BLOCK, 0)
        os.fsync(file)
        begun, written = time.perf_counter(), 0
        while (seconds := time.perf_counter() - begun) < _SECONDS:
            os.pwrite(file, _BLOCK, 0)
            os.fdatasync(file)
            written += 1
    finally:
        os.close(file)
    return Sample(value=written / seconds)
