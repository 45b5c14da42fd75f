"""Accepting and processing together: everything runs, and every event ends processed."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from benchmarks import open_loop
from benchmarks.corpus import corpus
from benchmarks.database import Database
from benchmarks.figures.accept import Shape
from benchmarks.frames import STREAM, SUBMIT, stream_body, submit_body
from benchmarks.open_loop import OpenLoad
from benchmarks.sample import Sample, cpu_detail, latency_detail, percentile
from benchmarks.stack import DEFAULT_WORKER_PROCESSES, Bench, Server
from benchmarks.usage import CpuMeter, peak_rss_mb
from tests.kit.processes import Process
from tests.kit.waiting import eventually

_SHAPE = Shape(in_flight=4, per_message=100, events=400_000)
#: Events of one call in open loop: one stream of one message.
PER_CALL = 100
_CALLS = replace(_SHAPE, in_flight=64, per_stream=PER_CALL)
#: Seconds of an open-loop run.
_SECONDS = 10
_STATEMENTS = """
SELECT sum(calls) FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@contextmanager
def everything(
    bench: Bench, *, servers: int = 1, workers: int | None = None
) -> Iterator[tuple[Database, Server, Process]]:
    """Run servers and workers, warmed up, with nothing left to do.

    `workers` are processes; without it there are as many as the product has by default.
    """
    with (
        bench.database() as database,
        bench.server(database, processes=servers) as server,
        bench.workers(database, processes=workers) as worker,
    ):
        _SHAPE.send(bench, server, 20_000)
        drain(database)
        yield database, server, worker


def end_to_end(
    bench: Bench, *, servers: int = 1, workers: int | None = None, keyed: bool = False
) -> Sample:
    """Return events/s from the first one received to the last one processed, closed loop."""
    shape = replace(_SHAPE, keyed=keyed)
    events = shape.events_in(bench.size(shape.events, shape.events // 3))
    with everything(bench, servers=servers, workers=workers) as (database, server, worker):
        since, counters = database.now(), database.counters()
        meter = bench.cpu(server=server.process, worker=worker)
        load = shape.send(bench, server, events)
        backlog = database.pending()
        drain(database)
        cpu = meter.stop()
        after = database.counters()
        detail = {
            "accepted_per_s": round(events / load.seconds),
            "backlog_at_end_percent": round(100 * backlog / events, 1),
            **latency_detail(database.accept_to_processed(since), "processed"),
            **cpu_detail(cpu, events),
            "cpu_client_s_per_million": round(load.cpu_seconds / events * 1e6, 1),
            "server_rss_mb": round(peak_rss_mb(server.process.pid), 1),
            "worker_rss_mb": round(peak_rss_mb(worker.pid), 1),
            "wal_bytes_per_event": round((after.wal_bytes - counters.wal_bytes) / events),
            "commits_per_event": round((after.transactions - counters.transactions) / events, 5),
            "disk_bytes_per_event": round(database.disk_bytes() / database.rows()),
        }
        value = events / database.processing_seconds(since)
        return Sample(
            value=value,
            detail={"events_per_s": value, **detail},
            faults=server.sent.faults(database, worker=worker),
        )


def at_load(bench: Bench, *, share: float) -> Sample:
    """Return p99 of accept -> processed in ms, at a share of what a burst of such calls reached."""
    seconds = bench.size(_SECONDS, _SECONDS // 2)
    with everything(bench) as (database, server, worker):
        most = highest(bench, database, server, open_streams=False)
        since = database.now()
        meter = bench.cpu(server=server.process, worker=worker)
        load = send_streams(server, rate=share * most, seconds=seconds)
        backlog = database.pending()
        drain(database)
        cpu = meter.stop()
        spent = database.accept_to_processed(since)
        sent = load.requests * PER_CALL
        return Sample(
            value=percentile(spent, 99) * 1e3,
            detail={
                "events_per_s": round(sent / load.seconds),
                "backlog_at_end_ms_of_load": round(backlog / sent * load.seconds * 1e3, 1),
                **latency_detail(spent, "processed"),
                **latency_detail(load.latencies, "accept"),
                **latency_detail(load.lateness, "late"),
                **cpu_detail(cpu, sent),
                "cpu_client_s_per_million": round(load.cpu_seconds / sent * 1e6, 1),
            },
            faults=server.sent.faults(database, worker=worker),
        )


def unary_at_load(bench: Bench, *, share: float) -> Sample:
    """Return p99 of a unary accept in ms, at a share of the rate with 64 in flight."""
    shape = Shape(in_flight=64, events=bench.size(16_000, 8_000))
    with bench.database() as database, bench.server(database) as server:
        shape.send(bench, server, 2_000)
        most = shape.events / shape.send(bench, server, shape.events).seconds
        load = open_loop.send(
            server.address,
            SUBMIT,
            submit_body(corpus("small")),
            rate=share * most,
            seconds=bench.size(_SECONDS, _SECONDS // 2),
            headers=server.headers,
        )
        server.sent.note(corpus("small"), 1, times=load.requests)
        return Sample(
            value=percentile(load.latencies, 99) * 1e3,
            detail={
                "events_per_s": round(load.requests / load.seconds),
                **latency_detail(load.latencies, "accept"),
                **latency_detail(load.lateness, "late"),
            },
            faults=server.sent.faults(database),
        )


def idle(bench: Bench) -> Sample:
    """Return p50 of accept -> processed in ms, one event at a time, and what idling costs.

    The worker's idle CPU is told for each of its processes, and with their parent's shared out.
    """
    count = bench.size(300, 100)
    with everything(bench) as (database, server, worker):
        meter = CpuMeter({"worker": [worker.pid], "server": [server.process.pid]})
        begun = time.perf_counter()
        time.sleep(bench.size(10, 5))  # idle, which is what is measured
        cpu, seconds = meter.stop(), time.perf_counter() - begun
        since, per_process = database.now(), cpu["worker"] / DEFAULT_WORKER_PROCESSES
        for _ in range(count):
            # At a random moment of whatever period anything polls with.
            time.sleep(random.uniform(0.02, 0.08))  # noqa: S311  # no secret
            Shape(in_flight=1, events=1).send(bench, server, 1)
        drain(database)
        spent = database.accept_to_processed(since)
        return Sample(
            value=percentile(spent, 50) * 1e3,
            detail={
                **latency_detail(spent, "processed"),
                "idle_worker_cpu_percent": round(100 * per_process / seconds, 2),
                "idle_worker_processes": DEFAULT_WORKER_PROCESSES,
                "idle_server_cpu_percent": round(100 * cpu["server"] / seconds, 2),
            },
            faults=server.sent.faults(database, worker=worker),
        )


def statements(bench: Bench) -> Sample:
    """Return SQL statements a million events, counted by pg_stat_statements in a run of its own."""
    events = _SHAPE.events_in(100_000)
    with bench.database() as database:
        database.query("CREATE EXTENSION pg_stat_statements")
        database.set("pg_stat_statements.track", "all")
        with bench.server(database) as server, bench.workers(database) as worker:
            _SHAPE.send(bench, server, events)
            drain(database)
            calls = database.query(_STATEMENTS)[0][0]
            faults = server.sent.faults(database, worker=worker)
        return Sample(value=float(calls) / events * 1e6, faults=faults)


def drain(database: Database) -> None:
    """Wait until every event is final; when that was, the rows tell."""
    # Looked for seldom, and by the index: each look costs what the service could use.
    eventually(lambda: not database.any_pending(), timeout=120, interval=0.5)


def send_streams(
    server: Server, *, rate: float, seconds: float, open_streams: bool = False
) -> OpenLoad:
    """Send a hundred small events at a time in open loop, so many events a second.

    Each hundred is a stream of its own, or with `open_streams` a message of a few that stay open.
    """
    small = corpus("small")
    load = open_loop.send(
        server.address,
        STREAM,
        stream_body(small, events=PER_CALL, per_message=PER_CALL),
        rate=rate / PER_CALL,
        seconds=seconds,
        headers=server.headers,
        open_streams=open_streams,
    )
    server.sent.note(small, PER_CALL, times=load.requests)
    return load


def highest(
    bench: Bench, database: Database, server: Server, *, open_streams: bool = True
) -> float:
    """Return the events/s that are accepted and processed, by a short closed-loop run.

    In a few streams that stay open, or in calls of a hundred events, as `send_streams` has them.
    """
    shape = _SHAPE if open_streams else _CALLS
    events = shape.events_in(bench.size(200_000, 100_000))
    since = database.now()
    shape.send(bench, server, events)
    drain(database)
    return events / database.processing_seconds(since)
