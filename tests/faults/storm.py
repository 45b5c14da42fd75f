"""The storm: a schedule of faults that a seed decides, and how each of them is done.

Run as a program it prints a schedule: python -m tests.faults.storm SEED SECONDS
"""

import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass

import psycopg2
import redis

from tests.faults.rig import Rig
from tests.kit.proxy import Point

#: Seconds of one round; its last quarter is quiet.
_ROUND = 40.0
_SHORT_ROUND = 16.0
_COMMIT = b"COMMIT\x00"
_COPY = b"COPY events"
_ALONE = b"EXECUTE ingest_keyed"
_FINISH = b"EXECUTE ingest_finish"
#: Threads that stay: what a thread has started ends with it (`tests.kit.processes.leash`).
_LANES = ThreadPoolExecutor(2, thread_name_prefix="lane")


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """One fault of the schedule."""

    #: Seconds from the begin of the storm.
    at: float
    name: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.at:.1f} {self.name} {self.seconds:.1f}"


def schedule(seed: int, seconds: float) -> Sequence[Sequence[Strike]]:
    """Return the strikes of two lanes, which overlap: the same seed gives the same ones."""
    lanes: list[list[Strike]] = []
    length = _ROUND if seconds > 4 * _SHORT_ROUND else _SHORT_ROUND
    for lane, names in (("processes", sorted(PROCESSES)), ("lines", sorted(LINES))):
        chosen = random.Random(f"{seed} {lane}")  # noqa: S311  # repeatable, no secret
        at = chosen.uniform(0.5, 2)
        lane_strikes: list[Strike] = []
        while at < seconds:
            strike = Strike(at=at, name=chosen.choice(names), seconds=chosen.uniform(0.5, 4))
            loud_until = at - at % length + length * 0.75
            if strike.at + strike.seconds <= loud_until:
                lane_strikes.append(strike)
                at = strike.at + strike.seconds + chosen.uniform(0.5, 3)
            else:
                at = loud_until + length * 0.25 + chosen.uniform(0.2, 2)
        lanes.append(lane_strikes)
    return lanes


def rage(rig: Rig, lanes: Sequence[Sequence[Strike]]) -> list[str]:
    """Carry the schedule out; returns what could not be done."""
    began = time.monotonic()
    problems: list[str] = []

    def run(strikes: Sequence[Strike]) -> None:
        for strike in strikes:
            time.sleep(max(0.0, began + strike.at - time.monotonic()))
            try:
                {**PROCESSES, **LINES}[strike.name](rig, strike.seconds)
            except Exception as error:  # noqa: BLE001  # told by the caller
                problems.append(f"{strike}: {error!r}"[:300])

    for lane in [_LANES.submit(run, strikes) for strikes in lanes]:
        lane.result()
    return problems


def _kill_server(rig: Rig, _seconds: float) -> None:
    rig.server.kill_and_wait()


def _kill_worker(rig: Rig, seconds: float) -> None:
    rig.workers[int(seconds * 10) % 2].kill_and_wait()


def _kill_both_workers(rig: Rig, _seconds: float) -> None:
    counts = [len(worker.restarts) for worker in rig.workers]
    for worker in rig.workers:
        worker.kill()
    for worker, count in zip(rig.workers, counts, strict=True):
        worker.wait_restart(count)


def _pause_server(rig: Rig, seconds: float) -> None:
    rig.server.signal_all(signal.SIGSTOP)
    time.sleep(seconds)
    rig.server.signal_all(signal.SIGCONT)


def _pause_worker(rig: Rig, seconds: float) -> None:
    worker = rig.workers[int(seconds * 10) % 2]
    worker.signal_all(signal.SIGSTOP)
    time.sleep(seconds * 3)
    worker.signal_all(signal.SIGCONT)


def _roll_server(rig: Rig, _seconds: float) -> None:
    rig.server.stop()
    rig.server.start()


def _roll_worker(rig: Rig, seconds: float) -> None:
    worker = rig.workers[int(seconds * 10) % 2]
    worker.stop()
    worker.start()


def _flush(rig: Rig, _seconds: float) -> None:
    with suppress(redis.RedisError), redis.Redis.from_url(rig.redis.url) as client:
        client.flushall()


def _redis_down(rig: Rig, seconds: float) -> None:
    rig.redis.kill()
    time.sleep(seconds)
    rig.redis.start()


def _redis_stalls(rig: Rig, seconds: float) -> None:
    brokers = [line.broker for line in (*rig.server_lines, *rig.worker_lines)]
    for proxy in brokers:
        proxy.stall()
    time.sleep(seconds)
    for proxy in brokers:
        proxy.resume()


def _redis_loses_replies(rig: Rig, seconds: float) -> None:
    brokers = [line.broker for line in (*rig.server_lines, *rig.worker_lines)]
    for proxy in brokers:
        proxy.lost_replies = 0.1
    time.sleep(seconds)
    for proxy in brokers:
        proxy.lost_replies = 0


def _postgres_dies(rig: Rig, _seconds: float) -> None:
    rig.postgres.kill()
    rig.postgres.start()


def _postgres_restarts(rig: Rig, _seconds: float) -> None:
    rig.postgres.restart("immediate")


def _postgres_down(rig: Rig, seconds: float) -> None:
    rig.postgres.stop("fast")
    time.sleep(seconds)
    rig.postgres.start()


def _postgres_stalls(rig: Rig, seconds: float) -> None:
    lines = [line.database for line in (*rig.server_lines, *rig.worker_lines)]
    for proxy in lines:
        proxy.stall()
    time.sleep(seconds * 2)
    for proxy in lines:
        proxy.resume()


def _postgres_slow(rig: Rig, seconds: float) -> None:
    lines = [line.database for line in (*rig.server_lines, *rig.worker_lines)]
    for proxy in lines:
        proxy.latency = 0.1
    time.sleep(seconds)
    for proxy in lines:
        proxy.latency = 0


def _commit_unanswered(rig: Rig, _seconds: float) -> None:
    for line, pattern, first in (
        (rig.server_lines[0], _COMMIT, _COPY),
        (rig.server_lines[0], _ALONE, b""),
        (rig.worker_lines[0], _COMMIT, _FINISH),
    ):
        trap = line.database.trap(pattern, Point.AFTER, first=first)
        # Other faults of the storm may keep everybody from coming by.
        with suppress(AssertionError):
            trap.wait(1)
        trap.cut()


def _cut_everything(rig: Rig, _seconds: float) -> None:
    for proxy in rig.proxies:
        proxy.cut()


def _lock_table(rig: Rig, seconds: float) -> None:
    with closing(psycopg2.connect(rig.url)) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        time.sleep(seconds)
        connection.rollback()


Fault = Callable[[Rig, float], None]

PROCESSES: Mapping[str, Fault] = {
    "kill-server": _kill_server,
    "kill-worker": _kill_worker,
    "kill-both-workers": _kill_both_workers,
    "pause-server": _pause_server,
    "pause-worker": _pause_worker,
    "roll-server": _roll_server,
    "roll-worker": _roll_worker,
}
LINES: Mapping[str, Fault] = {
    "flush": _flush,
    "redis-down": _redis_down,
    "redis-stalls": _redis_stalls,
    "redis-loses-replies": _redis_loses_replies,
    "postgres-dies": _postgres_dies,
    "postgres-restarts": _postgres_restarts,
    "postgres-down": _postgres_down,
    "postgres-stalls": _postgres_stalls,
    "postgres-slow": _postgres_slow,
    "commit-unanswered": _commit_unanswered,
    "cut-everything": _cut_everything,
    "lock-table": _lock_table,
}


if __name__ == "__main__":
    for lane in schedule(int(sys.argv[1]), float(sys.argv[2])):
        for planned in lane:
            sys.stdout.write(f"{planned}\n")
