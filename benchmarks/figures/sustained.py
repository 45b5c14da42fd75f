"""The highest rate at which accepting and processing go on together and the backlog does not grow.

Open loop: events arrive at a rate fixed beforehand, whatever the service does. The backlog is
everything that should have been sent by some moment and was not processed by then, so it also
holds what waits in the client, in the server or in the database. It is told afterwards by the rows'
own times: nothing looks at the database while events arrive.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from benchmarks.database import Database
from benchmarks.figures.flow import PER_CALL, drain, everything, highest, send_streams
from benchmarks.open_loop import OpenLoad
from benchmarks.sample import Sample, cpu_detail, latency_detail
from benchmarks.stack import Bench

_STEPS = 4
#: Seconds for which one rate is tried.
_SECONDS = 7.0
#: How much the rate changes from step to step; half of it once the answer has changed.
_CHANGE = 0.15
#: The backlog may grow by so much of the rate in the second half, which is what chance does.
_MOST_GROWTH = 0.02
_MOMENTS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    events_per_s: float
    #: Growth of the backlog over the second half, as a share of what arrived.
    growth: float
    #: Events waiting at the end.
    backlog: int
    #: Of server, workers, PostgreSQL and Redis, until the last event was processed.
    cpu: dict[str, float]
    load: OpenLoad = field(repr=False)
    processed: list[float] = field(repr=False)

    @property
    def events(self) -> int:
        return self.load.requests * PER_CALL

    @property
    def holds(self) -> bool:
        return self.growth <= _MOST_GROWTH


def sustained(bench: Bench, *, open_streams: bool) -> Sample:
    """Return the highest rate of a short search that starts at that of a closed-loop burst.

    A hundred events leave at a time, as a message of a stream that stays open or as a call.
    """
    with everything(bench) as (database, server, worker):
        burst = highest(bench, database, server, open_streams=open_streams)

        def attempt(rate: float) -> _Step:
            meter = bench.cpu(server=server.process, worker=worker)
            load = send_streams(server, rate=rate, seconds=_SECONDS, open_streams=open_streams)
            drain(database)
            return _step(database, rate, load, meter.stop())

        steps = _search(attempt, burst)
        held = [step for step in steps if step.holds]
        refused = [step.events_per_s for step in steps if not step.holds]
        detail: dict[str, float] = {
            "burst_per_s": round(burst),
            "steps": len(steps),
            "steps_that_held": len(held),
        }
        if refused:
            detail["lowest_that_grew_per_s"] = round(min(refused))
        # What held above a rate that did not was luck.
        below = [step for step in held if step.events_per_s < min(refused, default=math.inf)]
        best = max(below, key=lambda step: step.events_per_s, default=None)
        if best:
            detail |= {
                "growth_percent": round(100 * best.growth, 2),
                "backlog_at_end_ms_of_load": round(1e3 * best.backlog / best.events_per_s),
                **cpu_detail(best.cpu, best.events),
                **latency_detail(best.processed, "processed"),
                **latency_detail(best.load.lateness, "late"),
            }
        return Sample(
            value=best.events_per_s if best else 0.0,
            detail=detail,
            faults=server.sent.faults(database, worker=worker),
        )


def _search(attempt: Callable[[float], _Step], rate: float) -> list[_Step]:
    """Go up while the rate holds and down while it does not, in smaller steps after each turn."""
    steps: list[_Step] = []
    change = _CHANGE
    for _ in range(_STEPS):
        step = attempt(rate)
        if steps and steps[-1].holds is not step.holds:
            change /= 2
        steps.append(step)
        rate *= 1 + change if step.holds else 1 - change
    return steps


def _step(database: Database, rate: float, load: OpenLoad, cpu: dict[str, float]) -> _Step:
    since = datetime.fromtimestamp(load.begun_at, UTC)
    finished = sorted(
        row[0]
        for row in database.query(
            "SELECT extract(epoch FROM processed_at)::float8 FROM events WHERE received_at >= %s",
            (since,),
        )
    )

    def backlog(moment: float) -> int:
        arrived = PER_CALL * bisect_right(load.intended, moment)
        return arrived - bisect_right(finished, load.begun_at + moment)

    half = _SECONDS / 2
    moments = [half + half * number / _MOMENTS for number in range(_MOMENTS + 1)]
    return _Step(
        events_per_s=load.requests * PER_CALL / _SECONDS,
        growth=_slope(moments, [backlog(moment) for moment in moments]) / rate,
        backlog=backlog(_SECONDS),
        cpu=cpu,
        load=load,
        processed=database.accept_to_processed(since),
    )


def _slope(across: list[float], up: list[int]) -> float:
    """Return the growth per second by least squares."""
    mean_x, mean_y = sum(across) / len(across), sum(up) / len(up)
    over = sum((x - mean_x) * (y - mean_y) for x, y in zip(across, up, strict=True))
    return over / sum((x - mean_x) ** 2 for x in across)
