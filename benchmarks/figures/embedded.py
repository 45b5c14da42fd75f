"""The embedded mode: `ingest-service dev` on SQLite, which also processes meanwhile."""

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks.figures.accept import Shape
from benchmarks.sample import Sample, latency_detail
from benchmarks.stack import Bench, Server, free_port
from benchmarks.usage import cpu_seconds, peak_rss_mb


def embedded(bench: Bench, shape: Shape, *, working: bool = True) -> Sample:
    """Return accepted durable events/s; processing goes on beside it, as it does in real use.

    Without `working` the worker in the process stands still, as the workers do in the figures of
    accepting elsewhere.
    """
    shape = shape.sized(bench)
    with dev(bench, working=working) as (server, file):
        shape.send(bench, server, shape.events // 10)
        warm = _rows(file)
        cpu = cpu_seconds(server.process.pid)
        load = shape.send(bench, server, shape.events)
        cpu = cpu_seconds(server.process.pid) - cpu
        sent = shape.events_in(shape.events)
        stored = _rows(file) - warm
        return Sample(
            value=sent / load.seconds,
            detail={
                **latency_detail(load.latencies, "accept"),
                "cpu_s_per_million": round(cpu / sent * 1e6, 1),
                "rss_mb": round(peak_rss_mb(server.process.pid), 1),
                "processed_percent": round(100 - 100 * _pending(file) / (warm + sent), 1),
            },
            faults=() if stored == sent else (f"sent {sent}, stored {stored}",),
        )


@contextmanager
def dev(bench: Bench, *, working: bool) -> Iterator[tuple[Server, Path]]:
    """Run the embedded service, with its worker or without; gives it and its database file."""
    address = f"127.0.0.1:{free_port()}"
    folder = tempfile.mkdtemp(prefix="dev-", dir=bench.folder)
    with bench.processes() as started:
        process = started.start(
            *(
                (bench.python.parent / "ingest-service", "dev")
                if working
                else (bench.python, "-m", "benchmarks.accept_only")
            ),
            env={**bench.settings(), "INGEST_LISTEN": address, "INGEST_DATA_DIR": folder},
            ready=lambda process: "server_started" in process.output(),
        )
        server = Server(process=process, address=address, headers=bench.headers())
        yield server, Path(folder, "ingest.db")


def _rows(file: Path) -> int:
    return _query(file, "SELECT count(*) FROM events")


def _pending(file: Path) -> int:
    return _query(file, "SELECT count(*) FROM events WHERE status = 1")


def _query(file: Path, statement: str) -> int:
    with closing(sqlite3.connect(file, timeout=30)) as connection:
        return int(connection.execute(statement).fetchone()[0])
