"""A figure: what is measured, beside which limit, and what it is to reach."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.sample import Sample
from benchmarks.stack import Bench


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a figure is to reach; exactly one of these is set."""

    least_ratio: float | None = None
    most_ratio: float | None = None
    least: float | None = None
    most: float | None = None
    #: How far the value may lie above its limit, in the figure's unit.
    most_above: float | None = None

    def __str__(self) -> str:
        """Say it for people."""
        if self.least_ratio is not None:
            return f"ratio >= {self.least_ratio:g}"
        if self.most_ratio is not None:
            return f"ratio <= {self.most_ratio:g}"
        if self.most_above is not None:
            return f"<= limit + {self.most_above:g}"
        return f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}"

    @property
    def needs_limit(self) -> bool:
        """Whether it is told by a figure's limit, and no better than that was measured."""
        return self.least is None and self.most is None

    def is_met(self, value: float, limit: float | None) -> bool:
        """Tell whether a value reaches it."""
        if self.least_ratio is not None:
            return limit is not None and value >= self.least_ratio * limit
        if self.most_ratio is not None:
            return limit is not None and value <= self.most_ratio * limit
        if self.most_above is not None:
            return limit is not None and value <= limit + self.most_above
        if self.least is not None:
            return value >= self.least
        return self.most is not None and value <= self.most


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the report."""

    name: str
    unit: str
    probe: Callable[[Bench], Sample] | None = None
    #: Instead of a probe: another figure, and which of its details this one is.
    of: tuple[str, str] | None = None
    #: Names of the figures whose sum is the limit of this one; empty for limits and peers.
    limits: tuple[str, ...] = ()
    target: Target | None = None
    #: Whether `--quick` measures it.
    key: bool = False


#: What others may use of the machine before and during a measurement, the kernel included.
_QUIET_PERCENT = 10


@dataclass(slots=True, kw_only=True)
class Measured:
    """A figure with the samples of all its runs."""

    figure: Figure
    samples: list[Sample] = field(default_factory=list)
    #: How busy others kept the machine before and during each run, in percent of all cores.
    busy_before: list[float] = field(default_factory=list)
    busy_during: list[float] = field(default_factory=list)
    #: Runs that ended without a sample.
    failed: int = 0

    def take(self, source: Sample) -> None:
        """Add a run of the figure that this one is a detail of."""
        if self.figure.of and (name := self.figure.of[1]) in source.detail:
            self.samples.append(Sample(value=source.detail[name]))

    @property
    def noisy(self) -> bool:
        """Whether others used so much of the machine in one of the runs that it is in doubt."""
        return any(percent > _QUIET_PERCENT for percent in (*self.busy_before, *self.busy_during))

    @property
    def value(self) -> float:
        """The median."""
        return median(sample.value for sample in self.samples)

    @property
    def faults(self) -> list[str]:
        """Everything lost, doubled or stuck in any run."""
        return [fault for sample in self.samples for fault in sample.faults or ()]

    @property
    def checked(self) -> bool:
        """Whether what was sent was compared with what was stored."""
        return any(sample.faults is not None for sample in self.samples)

    def detail(self) -> dict[str, float]:
        """Return the medians of what else was seen."""
        names = dict.fromkeys(name for sample in self.samples for name in sample.detail)
        return {
            name: median(s.detail[name] for s in self.samples if name in s.detail) for name in names
        }

    def as_json(self, limit: float | None, *, doubtful: bool) -> dict[str, Any]:
        """Return the line of the results file; in doubt nobody knows whether a target is met."""
        figure, values = self.figure, [sample.value for sample in self.samples]
        return {
            "name": figure.name,
            "unit": figure.unit,
            "value": _rounded(self.value),
            "limit": None if limit is None else _rounded(limit),
            "limit_name": " + ".join(figure.limits) or None,
            "ratio": None if not limit else round(self.value / limit, 3),
            "min": _rounded(min(values)),
            "max": _rounded(max(values)),
            "runs": len(values),
            "failed": self.failed,
            "target": str(figure.target) if figure.target else None,
            "met": None
            if doubtful or not figure.target
            else figure.target.is_met(self.value, limit),
            "doubtful": doubtful,
            "busy_before_percent": _worst(self.busy_before),
            "busy_during_percent": _worst(self.busy_during),
            "checked": self.checked,
            "faults": self.faults,
            "detail": self.detail(),
        }


def with_limits(chosen: Sequence[str], figures: Sequence[Figure]) -> list[Figure]:
    """Return the figures of these names, and the limits that they stand beside."""
    by_name = {figure.name: figure for figure in figures}
    wanted: set[str] = set()
    more = list(chosen)
    while more:
        figure = by_name[more.pop()]
        wanted.add(figure.name)
        more += {*figure.limits, *(figure.of or ())[:1]} - wanted
    return [figure for figure in figures if figure.name in wanted]


def _worst(percents: Sequence[float]) -> float | None:
    return round(max(percents), 1) if percents else None


def _rounded(value: float) -> float:
    """Keep four significant digits, or whole numbers."""
    return round(value) if abs(value) >= 1_000 else float(f"{value:.4g}")
