"""Accepting: durable events per second and latency, closed loop, with the workers stopped."""

from dataclasses import dataclass, replace

from benchmarks import keyed
from benchmarks.corpus import corpus
from benchmarks.frames import STREAM, SUBMIT, stream_body, submit_body, write_body
from benchmarks.h2load import Load, post
from benchmarks.sample import Sample, latency_detail
from benchmarks.stack import Bench, Server
from benchmarks.usage import loop_seconds, peak_rss_mb

#: Connections over which calls in flight are spread; the server allows 256 calls on each.
_CONNECTIONS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is sent: unary calls, or streams of messages that hold several events."""

    corpus: str = "small"
    #: Calls or streams that are open at the same time.
    in_flight: int
    #: 0 for unary calls.
    per_message: int = 0
    #: Events of each stream; 0 for an equal share of all of them, so that streams stay open.
    per_stream: int = 0
    #: All events of a run.
    events: int
    #: Whether each event has an idempotency key of its own.
    keyed: bool = False

    @property
    def connections(self) -> int:
        """Connections that the calls are spread over."""
        return min(_CONNECTIONS, self.in_flight)

    def sized(self, bench: Bench) -> "Shape":
        """Return this shape, or with half the events for a quick run."""
        return replace(self, events=bench.size(self.events, self.events // 2))

    def send(self, bench: Bench, server: Server, events: int) -> Load:
        """Post about so many events; `events_in` tells how many they are."""
        events, source = self.events_in(events), corpus(self.corpus)
        if self.keyed:
            return self._send_keyed(server, bench, events)
        if self.per_message:
            path, share = STREAM, self.per_stream or events // self.in_flight
            requests = events // share
            body = stream_body(source, events=share, per_message=self.per_message)
        else:
            path, requests, share = SUBMIT, events, 1
            body = submit_body(source)
        server.sent.note(source, share, times=requests)
        return post(
            server.url(path),
            write_body(bench.folder, body),
            bench.folder,
            requests=requests,
            connections=self.connections,
            in_flight=self.in_flight // self.connections,
            headers=server.headers,
        )

    def _send_keyed(self, server: Server, bench: Bench, events: int) -> Load:
        source = corpus(self.corpus)
        if self.per_message:
            share = events // self.in_flight
            server.sent.note(source, share, times=self.in_flight, keyed=True)
            return keyed.send_streams(
                server.url(STREAM),
                source,
                server.keys,
                bench.folder,
                streams=self.in_flight,
                share=share,
                per_message=self.per_message,
                headers=server.headers,
            )
        server.sent.note(source, events, keyed=True)
        return keyed.send_unary(
            server.address,
            source,
            server.keys,
            calls=events,
            connections=self.connections,
            in_flight=self.in_flight // self.connections,
            headers=server.headers,
        )

    def events_in(self, events: int) -> int:
        """Round to what the streams share evenly."""
        share = self.in_flight * max(1, self.per_message, self.per_stream)
        return max(1, events // share) * share


def accept(bench: Bench, shape: Shape, *, processes: int = 1) -> Sample:
    """Return accepted durable events per second of the service."""
    shape = shape.sized(bench)
    with bench.database() as database, bench.server(database, processes=processes) as server:
        shape.send(bench, server, shape.events // 10)
        before, meter = database.counters(), bench.cpu(server=server.process)
        loop = loop_seconds(server.process.pid)
        load = shape.send(bench, server, shape.events)
        loop, cpu = loop_seconds(server.process.pid) - loop, meter.stop()
        sent = shape.events_in(shape.events)
        after, value = database.counters(), sent / load.seconds
        detail = {
            "events_per_s": value,
            **latency_detail(load.latencies, "accept"),
            **_costs(cpu | {"server_loop": loop, "client": load.cpu_seconds}, sent),
            "server_rss_mb": round(peak_rss_mb(server.process.pid), 1),
            "wal_bytes_per_event": round((after.wal_bytes - before.wal_bytes) / sent, 1),
            "commits_per_event": round((after.transactions - before.transactions) / sent, 5),
            "disk_bytes_per_event": round(database.disk_bytes() / database.rows(), 1),
        }
        return Sample(value=value, detail=detail, faults=server.sent.faults(database))


class NotServedError(Exception):
    """The no-op server refused calls, so that its rate is no limit."""


def noop(bench: Bench, shape: Shape) -> Sample:
    """Return events per second of the no-op server under the same load.

    Raises NotServedError unless it has served every event: h2load takes a refusal for an answer.
    """
    shape = shape.sized(bench)
    with bench.processes() as started:
        command = (bench.python, "-m", "benchmarks.limits.noop_server")
        server = bench.start_server(started, command, bench.settings())
        shape.send(bench, server, shape.events // 10)
        meter, loop = bench.cpu(server=server.process), loop_seconds(server.process.pid)
        load = shape.send(bench, server, shape.events)
        loop, cpu = loop_seconds(server.process.pid) - loop, meter.stop()
        server.process.terminate()
        server.process.wait()
        said = server.process.stderr()
    sent = shape.events_in(shape.events)
    expected = shape.events_in(shape.events // 10) + sent
    if f"events_served {expected}\n" not in said:
        raise NotServedError(f"not the {expected} events that were sent:\n{said}")
    cpu = {"server": cpu["server"], "server_loop": loop, "client": load.cpu_seconds}
    return Sample(
        value=sent / load.seconds,
        detail={**latency_detail(load.latencies, "noop"), **_costs(cpu, sent)},
    )


def _costs(cpu: dict[str, float], events: int) -> dict[str, float]:
    return {
        f"cpu_{name}_s_per_million": round(seconds / events * 1e6, 1)
        for name, seconds in cpu.items()
    }
