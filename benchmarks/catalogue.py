"""Every figure of the report, in the order of the table."""

from collections.abc import Callable
from functools import partial

from benchmarks.corpus import corpus
from benchmarks.figure import Figure, Target
from benchmarks.figures import flow, working
from benchmarks.figures.accept import Shape, accept, noop
from benchmarks.figures.embedded import embedded
from benchmarks.limits import copying, executemany, fsync, noop_actor, stamping
from benchmarks.sample import Sample
from benchmarks.stack import Bench

_RATE = "events/s"
_MS = "ms"

_UNARY = {
    1: Shape(in_flight=1, events=3_000),
    8: Shape(in_flight=8, events=10_000),
    64: Shape(in_flight=64, events=20_000),
    256: Shape(in_flight=256, events=20_000),
}
_STREAM = {
    1: Shape(in_flight=4, per_message=1, events=120_000),
    10: Shape(in_flight=4, per_message=10, events=240_000),
    100: Shape(in_flight=4, per_message=100, events=240_000),
}
_STREAMS = {n: Shape(in_flight=n, per_message=100, events=240_000) for n in (1, 16, 64)}
_GITHUB = Shape(corpus="github", in_flight=4, per_message=20, events=24_000)
_MEDIUM = Shape(corpus="medium", in_flight=4, per_message=50, events=80_000)


def figures() -> list[Figure]:
    """Return all of them; nothing is measured yet."""
    return [*_accept(), *_work(), *_flow(), *_embedded(), *_limits()]


def _accept() -> list[Figure]:
    return [
        Figure(
            name="stream_100", unit=_RATE, probe=partial(accept, shape=_STREAM[100]),
            limits=("copy_1000",), target=Target(least_ratio=0.80), key=True,
        ),
        Figure(
            name="stream_10", unit=_RATE, probe=partial(accept, shape=_STREAM[10]),
            limits=("copy_1000",),
        ),
        Figure(
            name="stream_1", unit=_RATE, probe=partial(accept, shape=_STREAM[1]),
            limits=("noop_stream_1",), target=Target(least_ratio=0.75), key=True,
        ),
        Figure(
            name="stream_github", unit=_RATE, probe=partial(accept, shape=_GITHUB),
            limits=("copy_github",), target=Target(least_ratio=0.80), key=True,
        ),
        Figure(
            name="stream_medium", unit=_RATE, probe=partial(accept, shape=_MEDIUM),
            limits=("copy_medium",),
        ),
        Figure(
            name="unary_1", unit=_MS, probe=_mean_latency(partial(accept, shape=_UNARY[1])),
            limits=("noop_unary_1", "insert_1"), target=Target(most_above=0.3), key=True,
        ),
        Figure(
            name="stream_100_64", unit=_RATE, probe=partial(accept, shape=_STREAMS[64]),
            limits=("copy_1000",), key=True,
        ),
        Figure(
            name="memory_64_streams", unit="MB", of=("stream_100_64", "server_rss_mb"),
            target=Target(most=200), key=True,
        ),
        Figure(
            name="unary_8", unit=_RATE, probe=partial(accept, shape=_UNARY[8]),
            limits=("noop_unary_8",),
        ),
        Figure(
            name="unary_64", unit=_RATE, probe=partial(accept, shape=_UNARY[64]),
            limits=("noop_unary_64",), target=Target(least_ratio=0.65), key=True,
        ),
        Figure(
            name="unary_256", unit=_RATE, probe=partial(accept, shape=_UNARY[256]),
            limits=("noop_unary_256",),
        ),
    ]  # fmt: skip


def _work() -> list[Figure]:
    return [
        Figure(
            name="worker_500",
            unit=_RATE,
            probe=partial(working.work, rows=200_000, group=500),
            limits=("stamp_500",),
            target=Target(least_ratio=0.70),
            key=True,
        ),
    ]


def _flow() -> list[Figure]:
    return [
        Figure(
            name="end_to_end",
            unit=_RATE,
            probe=flow.end_to_end,
            target=Target(least=40_000),
            key=True,
        ),
        Figure(
            name="cpu_per_million",
            unit="CPU s",
            of=("end_to_end", "cpu_all_s_per_million"),
            target=Target(most=60),
            key=True,
        ),
        Figure(name="idle_latency", unit=_MS, probe=flow.idle, target=Target(most=12), key=True),
        Figure(
            name="idle_latency_p99",
            unit=_MS,
            of=("idle_latency", "processed_p99_ms"),
            target=Target(most=30),
            key=True,
        ),
        Figure(
            name="idle_worker_cpu",
            unit="% of a core",
            of=("idle_latency", "idle_worker_cpu_percent"),
            target=Target(most=2),
            key=True,
        ),
        Figure(
            name="latency_50",
            unit=_MS,
            probe=partial(flow.at_load, share=0.5),
            target=Target(most=100),
            key=True,
        ),
        Figure(name="latency_80", unit=_MS, probe=partial(flow.at_load, share=0.8)),
        Figure(name="unary_p99_50", unit=_MS, probe=partial(flow.unary_at_load, share=0.5)),
        Figure(name="unary_p99_80", unit=_MS, probe=partial(flow.unary_at_load, share=0.8)),
    ]


def _embedded() -> list[Figure]:
    return [
        Figure(
            name="embedded_stream",
            unit=_RATE,
            probe=partial(embedded, shape=_STREAM[100]),
            limits=("executemany_1000",),
            target=Target(least_ratio=0.7),
            key=True,
        ),
        Figure(
            name="embedded_unary_64",
            unit=_RATE,
            probe=partial(embedded, shape=_UNARY[64]),
            target=Target(least=2_000),
            key=True,
        ),
    ]


def _limits() -> list[Figure]:
    small = corpus("small")
    copies = [
        Figure(
            name=f"copy_{name}", unit="rows/s",
            probe=partial(copying.copy_rate, corpus=corpus(kind), rows=rows, group=group),
        )
        for name, kind, rows, group in (
            ("1", "small", 4_000, 1),
            ("100", "small", 100_000, 100),
            ("1000", "small", 240_000, 1_000),
            ("medium", "medium", 80_000, 1_000),
            ("github", "github", 24_000, 1_000),
        )
    ]  # fmt: skip
    return [
        *copies,
        Figure(
            name="stamp_500",
            unit="rows/s",
            probe=partial(stamping.stamp_rate, rows=200_000, group=500),
        ),
        Figure(
            name="noop_actor",
            unit="messages/s",
            probe=partial(noop_actor.noop_rate, messages=4_000),
        ),
        Figure(
            name="executemany_1000",
            unit="rows/s",
            probe=partial(executemany.insert_rate, corpus=small, rows=200_000, group=1_000),
        ),
        Figure(name="fsync", unit="fsyncs/s", probe=fsync.fsync_rate),
        Figure(
            name="insert_1", unit=_MS,
            probe=partial(copying.insert_latency, corpus=corpus("small"), rows=3_000),
        ),
        Figure(
            name="noop_unary_1", unit=_MS, probe=_mean_latency(partial(noop, shape=_UNARY[1]))
        ),
        *(
            Figure(name=f"noop_unary_{n}", unit=_RATE, probe=partial(noop, shape=_UNARY[n]))
            for n in (8, 64, 256)
        ),
        *(
            Figure(name=f"noop_stream_{n}", unit=_RATE, probe=partial(noop, shape=_STREAM[n]))
            for n in _STREAM
        ),
    ]  # fmt: skip


def _mean_latency(probe: Callable[[Bench], Sample]) -> Callable[[Bench], Sample]:
    """With one call in flight, the rate is one over the mean latency: tell it in milliseconds."""

    def measure(bench: Bench) -> Sample:
        sample = probe(bench)
        return Sample(value=1e3 / sample.value, detail=sample.detail, faults=sample.faults)

    return measure
