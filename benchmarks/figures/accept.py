"""Accepting: durable events per second and latency, closed loop, with the workers stopped."""

from dataclasses import dataclass, replace

from benchmarks.corpus import corpus
from benchmarks.database import Database
from benchmarks.frames import STREAM, SUBMIT, stream_body, submit_body, write_body
from benchmarks.h2load import Load, post
from benchmarks.sample import Sample, latency_detail
from benchmarks.stack import Bench, Server
from benchmarks.usage import peak_rss_mb

#: Connections over which calls in flight are spread; the server allows 100 calls on each.
_CONNECTIONS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is sent: unary calls, or streams of messages that hold several events."""

    corpus: str = "small"
    #: Calls or streams that are open at the same time.
    in_flight: int
    #: 0 for unary calls.
    per_message: int = 0
    #: All events of a run.
    events: int

    @property
    def connections(self) -> int:
        """Connections that the calls are spread over."""
        return min(_CONNECTIONS, self.in_flight)

    def sized(self, bench: Bench) -> "Shape":
        """Return this shape, or with half the events for a quick run."""
        return replace(self, events=bench.size(self.events, self.events // 2))

    def send(self, bench: Bench, server: Server, events: int) -> Load:
        """Post about so many events; `events_in` tells how many they are."""
        events = self.events_in(events)
        if self.per_message:
            body = stream_body(
                corpus(self.corpus),
                events=events // self.in_flight,
                per_message=self.per_message,
            )
            path, requests = STREAM, self.in_flight
        else:
            body, path, requests = submit_body(corpus(self.corpus)), SUBMIT, events
        return post(
            server.url(path),
            write_body(bench.folder, body),
            bench.folder,
            requests=requests,
            connections=self.connections,
            in_flight=self.in_flight // self.connections,
            headers=server.headers,
        )

    def events_in(self, events: int) -> int:
        """Round to what the streams share evenly."""
        share = self.in_flight * max(1, self.per_message)
        return max(1, events // share) * share


def accept(bench: Bench, shape: Shape, *, processes: int = 1) -> Sample:
    """Return accepted durable events per second of the service."""
    shape = shape.sized(bench)
    with bench.database() as database, bench.server(database, processes=processes) as server:
        warm = shape.events_in(shape.events // 10)
        shape.send(bench, server, warm)
        before, meter = database.counters(), bench.cpu(server=server.process)
        load = shape.send(bench, server, shape.events)
        cpu = meter.stop()
        sent = shape.events_in(shape.events)
        detail = {
            **latency_detail(load.latencies, "accept"),
            **_costs(cpu | {"client": load.cpu_seconds}, sent),
            "server_rss_mb": round(peak_rss_mb(server.process.pid), 1),
            "wal_bytes_per_event": _wal(database, before.wal_bytes, sent),
            "disk_bytes_per_event": round(database.disk_bytes() / database.rows(), 1),
        }
        faults = database.faults(warm + sent, processed=False)
        server.process.terminate()
        server.process.wait()
        detail["commits_per_event"] = round(
            (database.counters().commits - before.commits) / sent, 5
        )
    return Sample(value=sent / load.seconds, detail=detail, faults=faults)


def noop(bench: Bench, shape: Shape) -> Sample:
    """Return events per second of the no-op server under the same load."""
    shape = shape.sized(bench)
    with bench.processes() as started:
        command = (bench.python, "-m", "benchmarks.limits.noop_server")
        server = bench.start_server(started, command, bench.settings())
        shape.send(bench, server, shape.events // 10)
        load = shape.send(bench, server, shape.events)
    return Sample(
        value=shape.events_in(shape.events) / load.seconds,
        detail=latency_detail(load.latencies, "noop"),
    )


def _costs(cpu: dict[str, float], events: int) -> dict[str, float]:
    return {
        f"cpu_{name}_s_per_million": round(seconds / events * 1e6, 1)
        for name, seconds in cpu.items()
    }


def _wal(database: Database, before: int, events: int) -> float:
    return round((database.counters().wal_bytes - before) / events, 1)
