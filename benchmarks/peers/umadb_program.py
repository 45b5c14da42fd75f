"""A program for .venv-bench: events a second that UmaDB stores durably, in appends of some size.

    python -m benchmarks.peers.umadb_program ADDRESS PAYLOAD EVENTS PER_APPEND THREADS

Prints one number. UmaDB is an event store behind gRPC with its own file format; it checks no
token, decodes no JSON and processes nothing. Its client releases the GIL.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import umadb


def main(address: str, payload: str, events: int, per_append: int, threads: int) -> float:
    """Append from `threads` clients and return the rate."""
    batch = [umadb.Event("page.viewed", payload.encode(), ["user:bench"])] * per_append

    def append(count: int) -> None:
        client = umadb.Client(address)
        for _ in range(count):
            client.append(batch)

    append(max(1, events // per_append // threads // 10))
    begun = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(append, [events // per_append // threads] * threads))
    return events / (time.perf_counter() - begun)


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])))
