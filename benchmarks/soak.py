"""The soak: half load for a long time, and what grows meanwhile (`--help`)."""

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks import open_loop
from benchmarks.corpus import corpus
from benchmarks.database import Database
from benchmarks.figures.flow import PER_CALL, drain, everything, highest
from benchmarks.frames import STREAM, SUBMIT, stream_body, submit_body
from benchmarks.open_loop import OpenLoad
from benchmarks.sample import percentile
from benchmarks.stack import Server, open_bench
from benchmarks.usage import anonymous_mb
from tests.kit.processes import Process

#: Unary calls a second, beside the streams.
_UNARY_RATE = 50.0
#: Minutes until what is kept in memory is there: caches, pools, the allocator's arenas.
_WARM_MINUTES = 5
#: Minutes of the shortest run that can be judged: a slope needs two after the warm-up.
_FEWEST_MINUTES = _WARM_MINUTES + 2
#: What may be gained in ten minutes after that.
_MOST_MB = 2.0
#: The median of the last five minutes may be so many times that of the first five.
_MOST_SLOWER = 1.5
#: Bloat after the warm-up, in any minute: runs that were well had up to 36 % and 940 bytes.
_MOST_DEAD_PERCENT = 50.0
_MOST_BYTES = 1_100
#: Seconds of the load that may be open at the end of a minute.
_MOST_BEHIND = 1.0

# The ids are times; so the last events are found by the primary key.
_LATEST = """
SELECT percentile_disc(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY processed_at - received_at)
FROM events
WHERE user_id = (SELECT id FROM users LIMIT 1) AND processed_at IS NOT NULL
  AND id > (lpad(to_hex(((extract(epoch FROM statement_timestamp()) - 5) * 1000)::bigint),
                 12, '0') || repeat('0', 20))::uuid
"""
_DEAD = """
SELECT coalesce(sum(n_dead_tup), 0), coalesce(sum(n_live_tup), 0),
       coalesce(sum(autovacuum_count), 0)
FROM pg_stat_user_tables WHERE relname LIKE 'events%'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Minute:
    """What one minute looked like."""

    minute: int
    events_per_s: int
    accept_p50_ms: float
    accept_p99_ms: float
    unary_p99_ms: float
    processed_p50_ms: float
    processed_p99_ms: float
    pending: int
    server_mb: float
    worker_mb: float
    dead_percent: float
    bytes_per_event: int
    autovacuums: int


def main() -> int:
    """Soak and judge; returns the exit code, 1 when something grew."""
    options = parse()
    with open_bench(quick=False) as bench, everything(bench) as (database, server, worker):
        most = highest(bench, database, server, open_streams=False)
        rate = options.share * most
        print(f"capacity {most:,.0f} events/s, load {rate:,.0f} events/s\n", flush=True)
        begun, sent = database.rows(), 0
        minutes: list[Minute] = []
        for number in range(1, options.minutes + 1):
            minute, events = _minute(number, database, server, worker, rate)
            minutes.append(minute)
            sent += events
            _print(minute, first=number == 1)
        drain(database)
        faults = database.faults(begun + sent, processed=True)
    wrong = [*faults, *complaints(minutes)]
    print("", *(_slopes(minutes)), *(wrong or ["all well"]), sep="\n")
    return int(bool(wrong))


def _minute(
    number: int, database: Database, server: Server, worker: Process, rate: float
) -> tuple[Minute, int]:
    """Load for a minute; returns what it looked like and how many events were sent."""
    begun = time.monotonic()
    loads: dict[str, OpenLoad] = {}

    def load(path: str, body: bytes, calls: float) -> None:
        loads[path] = open_loop.send(
            server.address, path, body, rate=calls, seconds=60, headers=server.headers
        )

    small = corpus("small")
    stream = stream_body(small, events=PER_CALL, per_message=PER_CALL)
    plan = ((STREAM, stream, rate / PER_CALL), (SUBMIT, submit_body(small), _UNARY_RATE))
    threads = [threading.Thread(target=load, args=part) for part in plan]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - begun
    sent = loads[STREAM].requests * PER_CALL + loads[SUBMIT].requests
    processed = database.query(_LATEST)[0][0] or []
    dead, live, vacuums = map(int, database.query(_DEAD)[0])
    minute = Minute(
        minute=number,
        events_per_s=round(sent / seconds),
        accept_p50_ms=_ms(percentile(loads[STREAM].latencies, 50)),
        accept_p99_ms=_ms(percentile(loads[STREAM].latencies, 99)),
        unary_p99_ms=_ms(percentile(loads[SUBMIT].latencies, 99)),
        processed_p50_ms=_ms(processed[0].total_seconds()) if processed else -1,
        processed_p99_ms=_ms(processed[1].total_seconds()) if processed else -1,
        pending=database.pending(),
        server_mb=round(anonymous_mb(server.process.pid), 1),
        worker_mb=round(anonymous_mb(worker.pid), 1),
        dead_percent=round(100 * dead / max(1, dead + live), 1),
        bytes_per_event=round(database.disk_bytes() / max(1, live)),
        autovacuums=vacuums,
    )
    return minute, sent


def _slopes(minutes: Sequence[Minute]) -> list[str]:
    return [
        f"{part}: {slope(minutes, part):+.2f} MB per 10 minutes after minute {_WARM_MINUTES}"
        for part in ("server_mb", "worker_mb")
    ]


def complaints(minutes: Sequence[Minute]) -> list[str]:
    """Return what grew that must not, or is more than it may be.

    Raises ValueError for fewer than seven minutes, of which nothing can be said.
    """
    found = [
        f"{part} grows" for part in ("server_mb", "worker_mb") if slope(minutes, part) > _MOST_MB
    ]
    for each in minutes[_WARM_MINUTES:]:
        wrong = {
            f"dead rows are {each.dead_percent} %": each.dead_percent > _MOST_DEAD_PERCENT,
            f"an event takes {each.bytes_per_event} bytes": each.bytes_per_event > _MOST_BYTES,
            f"{each.pending} are pending": each.pending > _MOST_BEHIND * each.events_per_s,
            "nothing was processed": each.processed_p50_ms < 0,
        }
        found += [f"minute {each.minute}: {text}" for text, is_so in wrong.items() if is_so]
    early, late = minutes[:_WARM_MINUTES], minutes[-_WARM_MINUTES:]
    for part in ("accept_p50_ms", "processed_p50_ms"):
        before, after = (
            percentile([getattr(minute, part) for minute in some], 50) for some in (early, late)
        )
        if after > before * _MOST_SLOWER:
            found.append(f"{part} went from {before} to {after}")
    return found


def slope(minutes: Sequence[Minute], part: str) -> float:
    """Return the growth per ten minutes by least squares, without the warm-up.

    Raises ValueError for fewer than seven minutes.
    """
    points: list[tuple[int, float]] = [
        (m.minute, getattr(m, part)) for m in minutes if m.minute > _WARM_MINUTES
    ]
    if len(minutes) < _FEWEST_MINUTES:
        raise ValueError(f"{len(minutes)} minutes; it takes {_FEWEST_MINUTES} to see a slope")
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    over = sum((x - mean_x) * (y - mean_y) for x, y in points)
    under = sum((x - mean_x) ** 2 for x, _ in points)
    return 10 * over / under


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 1)


def _print(minute: Minute, *, first: bool) -> None:
    row = asdict(minute)
    if first:
        print("| " + " | ".join(row) + " |", "|" + "---|" * len(row), sep="\n")
    print("| " + " | ".join(f"{value:,}" for value in row.values()) + " |", flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the arguments; a run that is too short to be judged is refused, with exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=int, default=30, help="how long (default 30)")
    parser.add_argument("--share", type=float, default=0.5, help="of the capacity (default 0.5)")
    options = parser.parse_args(arguments)
    if options.minutes < _FEWEST_MINUTES:
        parser.error(f"--minutes must be {_FEWEST_MINUTES} or more: fewer cannot be judged")
    return options


if __name__ == "__main__":
    sys.exit(main())
