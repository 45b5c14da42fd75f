"""What one run of a probe yields, and how many numbers become one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measured number, with whatever else was seen on the way."""

    value: float
    detail: dict[str, float] = field(default_factory=dict)
    #: What must be nought: events lost, doubled or stuck. Empty when all is well, None when there
    #: was nothing to check.
    faults: tuple[str, ...] | None = None


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the value that `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def latency_detail(seconds: Sequence[float], prefix: str) -> dict[str, float]:
    """Return p50, p95 and p99 in milliseconds."""
    return {f"{prefix}_p{p}_ms": round(percentile(seconds, p) * 1e3, 3) for p in (50, 95, 99)}


def cpu_detail(cpu: Mapping[str, float], events: int) -> dict[str, float]:
    """Return CPU seconds a million events, of each part and of all of them."""
    costs = {name: seconds / events * 1e6 for name, seconds in cpu.items()}
    return {
        **{f"cpu_{name}_s_per_million": round(cost, 1) for name, cost in costs.items()},
        "cpu_all_s_per_million": round(sum(costs.values()), 1),
    }
