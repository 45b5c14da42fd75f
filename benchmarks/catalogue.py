"""Every figure of the report, in the order of the table."""

from functools import partial

from benchmarks.figure import Figure, Target
from benchmarks.figures import flow, growth, working
from benchmarks.figures.accept import Shape, accept
from benchmarks.figures.embedded import embedded
from benchmarks.figures.memory import memory
from benchmarks.figures.sustained import sustained
from benchmarks.references import limits, mean_latency, peers
from benchmarks.shapes import (
    GITHUB,
    GITHUB_64,
    KEYED_STREAM,
    KEYED_UNARY,
    MEDIUM,
    STREAM,
    STREAMS,
    UNARY,
)

_RATE, _MS = "events/s", "ms"
_MILLION = 1_000_000


def figures() -> list[Figure]:
    """Return all of them; nothing is measured yet."""
    return [
        *_accept(),
        *_keyed(),
        *_work(),
        *_flow(),
        *_latency(),
        *_embedded(),
        *_growth(),
        *_scaling(),
        *limits(),
        *peers(),
    ]


def _accept() -> list[Figure]:
    return [
        _accepted("stream_100", STREAM[100], "copy_1000", Target(least_ratio=0.80)),
        _detail(
            "stream_100_by_x2", _RATE, "stream_100", "events_per_s", None,
            limit="copy_1000_x2", key=False,
        ),
        _accepted("stream_10", STREAM[10], "copy_1000"),
        _accepted("stream_1", STREAM[1], "noop_stream_1", Target(least_ratio=0.75)),
        _accepted("stream_100_x1", STREAMS[1], "copy_1000"),
        _accepted("stream_100_x16", STREAMS[16], "copy_1000"),
        _accepted("stream_100_x64", STREAMS[64], "copy_1000", key=True),
        _detail("memory_64_streams", "MB", "stream_100_x64", "server_rss_mb", Target(most=200)),
        Figure(
            name="memory_64_streams_github",
            unit="MB",
            probe=partial(memory, shape=GITHUB_64),
            target=Target(most=200),
        ),
        _accepted("stream_medium", MEDIUM, "copy_medium"),
        _accepted("stream_github", GITHUB, "copy_github", Target(least_ratio=0.80)),
        _detail(
            "stream_github_by_x2", _RATE, "stream_github", "events_per_s", None,
            limit="copy_github_x2", key=False,
        ),
        Figure(
            name="unary_1",
            unit=_MS,
            probe=mean_latency(partial(accept, shape=UNARY[1])),
            limits=("noop_unary_1", "insert_1"),
            target=Target(most_above=0.3),
            key=True,
        ),
        _accepted("unary_8", UNARY[8], "noop_unary_8"),
        _accepted("unary_64", UNARY[64], "noop_unary_64", Target(least_ratio=0.65)),
        _accepted("unary_256", UNARY[256], "noop_unary_256"),
    ]  # fmt: skip


def _keyed() -> list[Figure]:
    """Return what events with keys cost: beside the limits of those without, and beside those."""
    unary_1 = Figure(
        name="unary_1_keyed",
        unit=_MS,
        probe=mean_latency(partial(accept, shape=KEYED_UNARY[1])),
        limits=("noop_unary_1", "insert_1"),
    )
    end_to_end = Figure(
        name="end_to_end_keyed",
        unit=_RATE,
        probe=partial(flow.end_to_end, keyed=True),
        limits=("end_to_end",),
        key=True,
    )
    found = []
    for figure, plain, detail in (
        (_accepted("stream_100_keyed", KEYED_STREAM[100], "copy_1000", key=True),
         "stream_100", "events_per_s"),
        (_accepted("stream_1_keyed", KEYED_STREAM[1], "noop_stream_1"), "stream_1", "events_per_s"),
        (unary_1, "unary_1", "mean_ms"),
        (_accepted("unary_64_keyed", KEYED_UNARY[64], "noop_unary_64"),
         "unary_64", "events_per_s"),
    ):  # fmt: skip
        found += [
            figure,
            _detail(
                f"{figure.name}_by_plain", figure.unit, figure.name, detail, None, limit=plain,
                key=figure.key,
            ),
        ]  # fmt: skip
    cpu = _detail(
        "cpu_per_million_keyed", "CPU s", "end_to_end_keyed", "cpu_all_s_per_million", None,
        limit="cpu_per_million",
    )  # fmt: skip
    return [*found, end_to_end, cpu]


def _work() -> list[Figure]:
    return [
        Figure(
            name="worker_500",
            unit=_RATE,
            probe=partial(working.work, rows=200_000, group=500, processes=None),
            limits=("stamp_500",),
            target=Target(least_ratio=0.70),
            key=True,
        ),
        Figure(
            name="worker_500_x1",
            unit=_RATE,
            probe=partial(working.work, rows=200_000, group=500, processes=1),
            limits=("stamp_500",),
        ),
        Figure(name="recover", unit=_RATE, probe=partial(growth.recover, rows=100_000)),
    ]


def _flow() -> list[Figure]:
    return [
        Figure(
            name="end_to_end",
            unit=_RATE,
            probe=flow.end_to_end,
            limits=("peer_end_to_end",),
            target=Target(least=40_000),
            key=True,
        ),
        _detail(
            "end_to_end_x_peer", _RATE, "end_to_end", "events_per_s", Target(least_ratio=100),
            limit="peer_end_to_end",
        ),
        Figure(
            name="sustained", unit=_RATE, probe=partial(sustained, open_streams=True),
            target=Target(least=40_000),
        ),
        Figure(
            name="sustained_calls", unit=_RATE, probe=partial(sustained, open_streams=False),
        ),
        _detail(
            "cpu_per_million", "CPU s", "end_to_end", "cpu_all_s_per_million", Target(most=60)
        ),
        Figure(name="statements", unit="per million", probe=flow.statements, key=True),
    ]  # fmt: skip


def _latency() -> list[Figure]:
    return [
        Figure(name="idle_latency", unit=_MS, probe=flow.idle, target=Target(most=12), key=True),
        _detail("idle_latency_p99", _MS, "idle_latency", "processed_p99_ms", Target(most=30)),
        _detail(
            "idle_worker_cpu", "% of a core", "idle_latency", "idle_worker_cpu_percent",
            Target(most=2),
        ),
        Figure(
            name="latency_50",
            unit=_MS,
            probe=partial(flow.at_load, share=0.5),
            target=Target(most=100),
            key=True,
        ),
        Figure(
            name="latency_80", unit=_MS, probe=partial(flow.at_load, share=0.8),
        ),
        Figure(
            name="unary_p99_50", unit=_MS, probe=partial(flow.unary_at_load, share=0.5),
        ),
        Figure(
            name="unary_p99_80", unit=_MS, probe=partial(flow.unary_at_load, share=0.8),
        ),
    ]  # fmt: skip


def _embedded() -> list[Figure]:
    return [
        Figure(
            name="embedded_stream",
            unit=_RATE,
            probe=partial(embedded, shape=STREAM[100], working=False),
            limits=("executemany_1000",),
            target=Target(least_ratio=0.7),
            key=True,
        ),
        Figure(
            name="embedded_together",
            unit=_RATE,
            probe=partial(embedded, shape=STREAM[100]),
            limits=("executemany_1000",),
        ),
        Figure(
            name="embedded_unary_64",
            unit=_RATE,
            probe=partial(embedded, shape=UNARY[64]),
            target=Target(least=2_000),
            key=True,
        ),
    ]


def _growth() -> list[Figure]:
    """Return each cost beside the same cost with an empty table."""
    stored = {
        "growth_0": partial(growth.growth, rows=0),
        "growth_1m": partial(growth.growth, rows=_MILLION),
        "growth_10m": partial(growth.growth, rows=10 * _MILLION),
        "growth_pending": partial(growth.growth, rows=_MILLION, pending=True),
    }
    same, enough = Target(most_ratio=1.2), Target(least_ratio=0.85)
    found = []
    for name, probe in stored.items():
        limit, first = ("growth_0",), name == "growth_0"
        found.append(
            Figure(
                name=name,
                unit=_RATE,
                probe=probe,
                limits=() if first else limit,
                target=None if first else enough,
            )
        )
        found.append(
            _detail(
                f"{name}_process", _RATE, name, "process_per_s", None if first else enough,
                limit="" if first else "growth_0_process", key=False,
            )
        )  # fmt: skip
        found += [
            _detail(
                f"{name}_{what}", _MS, name, f"{what}_p50_ms", None if first else same,
                limit="" if first else f"growth_0_{what}", key=False,
            )
            for what in ("get", "list", "sweep")
        ]  # fmt: skip
    return [
        *found,
        Figure(name="resend_100", unit=_MS, probe=partial(growth.resend, keys=0)),
        Figure(
            name="resend_100_1m",
            unit=_MS,
            probe=partial(growth.resend, keys=_MILLION),
            limits=("resend_100",),
            target=same,
        ),
    ]


def _scaling() -> list[Figure]:
    """Return the end-to-end rate by server and worker processes, whatever the defaults are."""
    return [
        Figure(
            name=f"scale_{servers}s_{workers}w",
            unit=_RATE,
            probe=partial(flow.end_to_end, servers=servers, workers=workers),
            limits=() if servers == workers == 1 else ("scale_1s_1w",),
        )
        for servers, workers in ((1, 1), (2, 1), (4, 1), (1, 2), (1, 4), (2, 2))
    ]


def _accepted(
    name: str, shape: Shape, limit: str, target: Target | None = None, *, key: bool = False
) -> Figure:
    return Figure(
        name=name,
        unit=_RATE,
        probe=partial(accept, shape=shape),
        limits=(limit,),
        target=target,
        key=key or target is not None,
    )


def _detail(
    name: str, unit: str, of: str, detail: str, target: Target | None, *, limit: str = "",
    key: bool = True,
) -> Figure:  # fmt: skip
    limits = (limit,) if limit else ()
    return Figure(name=name, unit=unit, of=(of, detail), target=target, limits=limits, key=key)
