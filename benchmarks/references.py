"""The figures that others stand beside: physical limits and peers."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from benchmarks.corpus import corpus
from benchmarks.figure import Figure
from benchmarks.figures.accept import noop
from benchmarks.limits import copying, executemany, fsync, noop_actor, stamping
from benchmarks.peers.fastapi_celery import HttpLoad, peer_accept, peer_end_to_end
from benchmarks.peers.programs import queue_rate, umadb_rate
from benchmarks.sample import Sample
from benchmarks.shapes import STREAM, UNARY
from benchmarks.stack import Bench

_EVENTS, _ROWS, _MS = "events/s", "rows/s", "ms"


def limits() -> list[Figure]:
    """Return what the machine does with nothing of the service in the way."""
    small, medium, github = corpus("small"), corpus("medium"), corpus("github")
    copy, insert = copying.copy_rate, copying.insert_latency
    in_sqlite, stamp, actor = executemany.insert_rate, stamping.stamp_rate, noop_actor.noop_rate
    return [
        _figure("copy_1", _ROWS, partial(copy, corpus=small, rows=4_000, group=1)),
        _figure("copy_100", _ROWS, partial(copy, corpus=small, rows=100_000, group=100)),
        _figure("copy_1000", _ROWS, partial(copy, corpus=small, rows=240_000, group=1_000)),
        _figure(
            "copy_1000_x2",
            _ROWS,
            partial(copy, corpus=small, rows=240_000, group=1_000, connections=2),
        ),
        _figure("copy_medium", _ROWS, partial(copy, corpus=medium, rows=80_000, group=1_000)),
        _figure("copy_github", _ROWS, partial(copy, corpus=github, rows=24_000, group=1_000)),
        _figure(
            "copy_github_x2",
            _ROWS,
            partial(copy, corpus=github, rows=24_000, group=1_000, connections=2),
        ),
        _figure("insert_1", _MS, partial(insert, corpus=small, rows=3_000)),
        _figure("noop_unary_1", _MS, mean_latency(partial(noop, shape=UNARY[1]))),
        *(_figure(f"noop_unary_{n}", _EVENTS, partial(noop, shape=UNARY[n])) for n in (8, 64, 256)),
        *(_figure(f"noop_stream_{n}", _EVENTS, partial(noop, shape=STREAM[n])) for n in STREAM),
        _figure("stamp_500", _ROWS, partial(stamp, rows=200_000, group=500)),
        _figure("noop_actor", "messages/s", partial(actor, messages=4_000)),
        _figure(
            "executemany_1000", _ROWS, partial(in_sqlite, corpus=small, rows=200_000, group=1_000)
        ),
        _figure("fsync", "fsyncs/s", fsync.fsync_rate),
    ]


def peers() -> list[Figure]:
    """Return other builds of the same job, or of a half of it."""
    one = HttpLoad(path="/events", per_call=1, in_flight=64, calls=4_000)
    batch = HttpLoad(path="/events/batch", per_call=100, in_flight=4, calls=200)
    bulk = HttpLoad(path="/events/bulk", per_call=100, in_flight=4, calls=400)
    return [
        _figure("peer_unary_64", _EVENTS, partial(peer_accept, load=one)),
        _figure("peer_batch_100", _EVENTS, partial(peer_accept, load=batch)),
        _figure("peer_bulk_100", _EVENTS, partial(peer_accept, load=bulk)),
        _figure("peer_end_to_end", _EVENTS, partial(peer_end_to_end, load=one), key=True),
        _figure("peer_bulk_end_to_end", _EVENTS, partial(peer_end_to_end, load=bulk)),
        _figure("procrastinate", "jobs/s", partial(queue_rate, name="procrastinate", jobs=4_000)),
        _figure("pgqueuer", "jobs/s", partial(queue_rate, name="pgqueuer", jobs=40_000)),
        _figure(
            "umadb_100", _EVENTS, partial(umadb_rate, events=400_000, per_append=100, threads=4)
        ),
        _figure("umadb_1", _EVENTS, partial(umadb_rate, events=40_000, per_append=1, threads=64)),
    ]


def mean_latency(probe: Callable[[Bench], Sample]) -> Callable[[Bench], Sample]:
    """With one call in flight, the rate is one over the mean latency: tell it in milliseconds."""

    def measure(bench: Bench) -> Sample:
        sample = probe(bench)
        value = 1e3 / sample.value
        return replace(sample, value=value, detail=sample.detail | {"mean_ms": value})

    return measure


def _figure(name: str, unit: str, probe: Callable[[Bench], Sample], *, key: bool = False) -> Figure:
    return Figure(name=name, unit=unit, probe=probe, key=key)
