"""Measures the ordinary build (`ordinary/`) with the same PostgreSQL, Redis and load generator."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import redis

from benchmarks.corpus import corpus
from benchmarks.database import Database
from benchmarks.frames import write_body
from benchmarks.h2load import Load, post
from benchmarks.peers.environment import peer_python
from benchmarks.sample import Sample, cpu_detail, latency_detail
from benchmarks.stack import Bench, free_port
from benchmarks.usage import CpuMeter
from tests.kit.databases import fresh_database
from tests.kit.processes import Process, Processes
from tests.kit.waiting import eventually

_MODULES = "benchmarks.peers.ordinary"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLoad:
    """What is sent: calls of so many events, on connections that each have one in flight."""

    path: str
    per_call: int
    in_flight: int
    calls: int

    def sized(self, bench: Bench) -> "HttpLoad":
        """Return this load, or half of it for a quick run."""
        return replace(self, calls=bench.size(self.calls, self.calls // 2))


@dataclass(slots=True, kw_only=True)
class _Peer:
    bench: Bench
    database: Database
    address: str
    started: Processes
    env: dict[str, str]
    api: Process

    def send(self, load: HttpLoad) -> Load:
        """Post over HTTP/1.1."""
        events = [
            {"type": e.type, "source": e.source, "payload": json.loads(e.payload_json)}
            for e in corpus("small").cycle(load.per_call)
        ]
        body = json.dumps(events if load.path != "/events" else events[0]).encode()
        token = f"authorization: Bearer {self.bench.token()}"
        return post(
            f"http://{self.address}{load.path}",
            write_body(self.bench.folder, body),
            self.bench.folder,
            requests=load.calls,
            connections=load.in_flight,
            headers=("content-type: application/json", token),
            options=("--h1",),
        )

    def warm_up(self, load: HttpLoad) -> None:
        """Post a tenth more, which is not counted, as the service is warmed up."""
        self.send(replace(load, calls=max(load.in_flight, load.calls // 10)))

    def start_worker(self) -> Process:
        """Start Celery with a prefork process for each of two cores."""
        return self.started.start(
            *(peer_python(), "-m", "celery", "-A", f"{_MODULES}.tasks:celery", "worker"),
            # Quiet, as one would have it in production; INFO is two lines a task.
            *("--concurrency", "2", "--loglevel", "WARNING"),
            env=self.env,
            ready=lambda process: "peer_worker_started" in process.output(),
        )


def peer_accept(bench: Bench, load: HttpLoad) -> Sample:
    """Return accepted durable events/s; Celery's workers are stopped."""
    load = load.sized(bench)
    with _peer(bench) as peer:
        peer.warm_up(load)
        before = peer.database.rows()
        done = peer.send(load)
        stored = peer.database.rows() - before
        return Sample(value=stored / done.seconds, detail=latency_detail(done.latencies, "accept"))


def peer_end_to_end(bench: Bench, load: HttpLoad) -> Sample:
    """Return events/s from the first one received to the last one processed."""
    load = load.sized(bench)
    with _peer(bench) as peer:
        worker = peer.start_worker()
        peer.warm_up(load)
        eventually(lambda: not peer.database.any_pending(), timeout=60, interval=0.5)
        since = peer.database.now()
        meter = CpuMeter(
            {
                "server": [peer.api.pid],
                "worker": [worker.pid],
                "postgres": [bench.postgres_pid],
                "redis": [bench.redis_pid],
            }
        )
        done = peer.send(load)
        eventually(lambda: not peer.database.any_pending(), timeout=300, interval=0.5)
        cpu, events = meter.stop(), load.calls * load.per_call
        return Sample(
            value=events / peer.database.processing_seconds(since),
            detail={
                "accepted_per_s": round(events / done.seconds),
                **latency_detail(peer.database.accept_to_processed(since), "processed"),
                **cpu_detail(cpu, events),
            },
        )


@contextmanager
def _peer(bench: Bench) -> Iterator[_Peer]:
    python = peer_python()
    with redis.Redis.from_url(bench.redis_url) as client:
        client.flushall()
    with fresh_database(bench.postgres_url) as url, bench.processes() as started:
        env = {
            "PEER_DATABASE_URL": url.replace("postgresql://", "postgresql+psycopg2://"),
            "PEER_BROKER_URL": bench.redis_url,
            "PEER_JWT_SECRET": bench.secret,
        }
        started.start(python, "-m", f"{_MODULES}.models", env=env).wait()
        port = free_port()
        api = started.start(
            *(python, "-m", "uvicorn", f"{_MODULES}.api:app", "--workers", "2"),
            *("--port", str(port), "--no-access-log", "--log-level", "warning"),
            env=env,
            ready=lambda process: process.output().count("peer_api_started") == 2,
        )
        yield _Peer(
            bench=bench,
            database=Database(url),
            address=f"127.0.0.1:{port}",
            started=started,
            env=env,
            api=api,
        )
