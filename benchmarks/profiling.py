"""Where the time of one load goes: CPU by thread from /proc, the interpreter lock by py-spy.

`python -m benchmarks.profiling --help`. It needs `py-spy` (PyPI) on the PATH, and the right to look
into another process. The load is a little slower while it is looked at. `statements` looks at
PostgreSQL instead, by pg_stat_statements, and needs neither.
"""

import argparse
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import fill
from benchmarks.figures.accept import Shape
from benchmarks.figures.embedded import dev
from benchmarks.figures.flow import drain, everything, highest, send_streams
from benchmarks.figures.working import dispatch
from benchmarks.shapes import GITHUB, STREAM, UNARY
from benchmarks.stack import Bench, open_bench
from benchmarks.usage import thread_seconds, tree
from tests.kit.waiting import eventually

SHAPES = {
    "stream_1": STREAM[1],
    "stream_100": STREAM[100],
    "stream_github": GITHUB,
    "unary_1": UNARY[1],
    "unary_64": UNARY[64],
}
#: Looks a second.
_RATE = 250
#: Functions of a thread that are told, and the least share of it.
_MOST_FUNCTIONS = 14
_LEAST_SHARE = 0.01
_WORKER_ROWS = 300_000
_SUSTAINED_SECONDS = 10.0
_STATEMENTS = r"""
SELECT left(regexp_replace(query, '\s+', ' ', 'g'), 60), round(rows::numeric / calls, 1),
       round(total_exec_time::numeric * 1000 / %(events)s, 2), round(wal_bytes / %(events)s)
FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY total_exec_time DESC LIMIT 6
"""
_THREAD = re.compile(r"thread \((?P<id>\d+)\): (?P<name>.*)")


@dataclass(slots=True, kw_only=True)
class Looked:
    """What was seen of one process: seconds of CPU by thread, and looks that found the lock."""

    cpu: dict[int, float]
    names: dict[int, str]
    looks: dict[int, Counter[str]]


def main() -> int:
    """Profile one load and print it; returns the exit code."""
    options = _parse()
    if options.load == "statements":
        with open_bench(quick=False) as bench:
            _print_statements(bench)
        return 0
    if shutil.which("py-spy") is None:
        print("py-spy is missing: pip install py-spy", file=sys.stderr)
        return 2
    with open_bench(quick=False) as bench:
        for title, events, looked in _profile(bench, options.load):
            _print(title, events, looked)
    return 0


def _profile(bench: Bench, load: str) -> Iterator[tuple[str, int, Looked]]:
    if load in SHAPES:
        yield _accepting(bench, load, SHAPES[load])
    elif load == "worker_500":
        yield _working(bench)
    elif load == "embedded_stream":
        yield _embedded(bench)
    else:
        yield from _together(bench)


def _accepting(bench: Bench, load: str, shape: Shape) -> tuple[str, int, Looked]:
    with bench.database() as database, bench.server(database) as server:
        shape.send(bench, server, shape.events // 5)
        with _looking(bench, server.process.pid) as looked:
            done = shape.send(bench, server, shape.events)
    events = shape.events_in(shape.events)
    return f"{load}: server, {events / done.seconds:,.0f} events/s", events, looked


def _embedded(bench: Bench) -> tuple[str, int, Looked]:
    shape = STREAM[100]
    with dev(bench, working=False) as (server, _file):
        shape.send(bench, server, shape.events // 5)
        with _looking(bench, server.process.pid) as looked:
            done = shape.send(bench, server, shape.events)
    events = shape.events_in(shape.events)
    return f"embedded_stream: the process, {events / done.seconds:,.0f} events/s", events, looked


def _working(bench: Bench) -> tuple[str, int, Looked]:
    with bench.database() as database:
        fill.fill(database, _WORKER_ROWS, pending=True)
        fill.settle(database)
        dispatch(bench, database, group=500)
        with bench.workers(database, processes=1) as worker:
            pid = _busiest(worker.pid)
            before = database.pending()
            with _looking(bench, pid) as looked:
                eventually(lambda: not database.any_pending(), timeout=120, interval=0.5)
    return "worker_500: the one worker process", before, looked


def _together(bench: Bench) -> Iterator[tuple[str, int, Looked]]:
    """Look at server and one of the two workers while the load is what can be sustained."""
    with everything(bench) as (database, server, worker):
        rate = 0.8 * highest(bench, database, server)
        for name, pid in (("server", server.process.pid), ("a worker", _busiest(worker.pid))):
            with _looking(bench, pid) as looked:
                load = send_streams(
                    server, rate=rate, seconds=_SUSTAINED_SECONDS, open_streams=True
                )
                drain(database)
            events = load.requests * 100
            yield f"together at {rate:,.0f} events/s: {name}", events, looked


def _print_statements(bench: Bench) -> None:
    """Print what accepting and processing together cost PostgreSQL, by statement."""
    for open_streams, title in ((True, "streams that stay open"), (False, "calls of a hundred")):
        with bench.database() as database:
            database.query("CREATE EXTENSION pg_stat_statements")
            database.set("pg_stat_statements.track", "top")
            with bench.server(database) as server, bench.workers(database):
                highest(bench, database, server, open_streams=open_streams)
                database.query("SELECT pg_stat_statements_reset()")
                before = database.rows()
                highest(bench, database, server, open_streams=open_streams)
                rows = database.query(_STATEMENTS, {"events": database.rows() - before})
        print(f"\nPostgreSQL, {title}\n")
        print("| statement | events a call | us an event | WAL bytes an event |")
        print("|---|---|---|---|")
        for row in rows:
            print("| " + " | ".join(map(str, row)) + " |")


@contextmanager
def _looking(bench: Bench, pid: int) -> Iterator[Looked]:
    """Look at a process during the body; what was seen is there afterwards."""
    file = bench.folder / f"looks-{time.monotonic_ns()}"
    command = ("py-spy", "record", "--pid", str(pid), "--rate", str(_RATE), "--gil", "--function")
    output = ("--threads", "--format", "raw", "--output", str(file), "--duration", "600")
    looked = Looked(cpu={}, names={}, looks={})
    said = file.with_suffix(".said")
    with (
        said.open("w") as out,
        subprocess.Popen([*command, *output], stdout=out, stderr=subprocess.STDOUT) as spy,
    ):
        eventually(lambda: said.stat().st_size > 0)  # it says that it has begun
        before = thread_seconds(pid)
        try:
            yield looked
        finally:
            after = thread_seconds(pid)
            spy.send_signal(signal.SIGINT)
    looked.cpu = {thread: after[thread] - before.get(thread, 0.0) for thread in after}
    for line in file.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        if (found := _THREAD.match(thread)) and frames:
            looked.names[int(found["id"])] = found["name"]
            looked.looks.setdefault(int(found["id"]), Counter())[frames[-1]] += int(count)


def _busiest(root: int) -> int:
    """Return the process of a tree that has most threads: the one that works."""
    return max(tree(root), key=lambda pid: len(list(Path(f"/proc/{pid}/task").iterdir())))


def _print(title: str, events: int, looked: Looked) -> None:
    print(f"{title}\n\nus an event; the lock is Python's interpreter lock\n")
    print("| thread | CPU | of it with the lock |", "|---|---|---|", sep="\n")
    other = 0.0
    for thread, seconds in sorted(looked.cpu.items(), key=lambda item: -item[1]):
        held = sum(looked.looks.get(thread, Counter()).values()) / _RATE
        if thread not in looked.names:
            other += seconds
            continue
        print(f"| {looked.names[thread]} | {_each(seconds, events)} | {_each(held, events)} |")
    print(f"| threads without Python | {_each(other, events)} | |\n")
    print("| thread | function | with the lock |", "|---|---|---|", sep="\n")
    all_looks = sum(sum(counter.values()) for counter in looked.looks.values())
    for thread, counter in looked.looks.items():
        for function, count in counter.most_common(_MOST_FUNCTIONS):
            if count >= _LEAST_SHARE * all_looks:
                print(f"| {looked.names[thread]} | {function} | {_each(count / _RATE, events)} |")
    print()


def _each(seconds: float, events: int) -> str:
    return f"{seconds / events * 1e6:,.2f}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiling", description=__doc__)
    parser.add_argument(
        "load", choices=[*SHAPES, "worker_500", "embedded_stream", "together", "statements"]
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
