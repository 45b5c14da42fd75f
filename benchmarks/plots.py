"""Draws the results file; a program for .venv-bench, which has matplotlib.

python -m benchmarks.plots RESULTS FOLDER
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt  # after use()

_IN_FLIGHT = (1, 8, 64, 256)
_PER_MESSAGE = (1, 10, 100)
_STORED = {"growth_0": 0.1, "growth_1m": 1, "growth_10m": 10}
_SHARES = (50, 80)

Results = Mapping[str, Mapping[str, Any]]


def load(results: Results, file: Path) -> None:
    """Draw throughput and latency against load."""
    figure, ((unary, streams), (latency, open_loop)) = plt.subplots(2, 2, figsize=(11, 8))
    for prefix, label in (("unary", "service"), ("noop_unary", "no-op server")):
        rates = {n: _rate(results, f"{prefix}_{n}") for n in _IN_FLIGHT}
        _line(unary, rates, label)
    _style(unary, "Unary calls", "calls in flight", "events/s")
    for prefix, label in (("stream", "service"), ("noop_stream", "no-op server")):
        _line(streams, {n: _rate(results, f"{prefix}_{n}") for n in _PER_MESSAGE}, label)
    for name, label in (("copy_1000", "raw COPY"), ("copy_1000_x2", "raw COPY, two connections")):
        _line(streams, {n: _rate(results, name) for n in _PER_MESSAGE}, label)
    _style(streams, "Four streams", "events a message", "events/s")
    streams.set(yscale="log", ylim=(1e4, None))
    for percent in (50, 95, 99):
        found = {n: _of(results, f"unary_{n}", f"accept_p{percent}_ms") for n in _IN_FLIGHT}
        _line(latency, found, f"p{percent}")
    _style(latency, "Unary accept, closed loop", "calls in flight", "ms")
    for name, label in (("unary_p99", "unary accept"), ("latency", "accept to processed")):
        detail = "accept" if name == "unary_p99" else "processed"
        for percent in (50, 99):
            found = {s: _of(results, f"{name}_{s}", f"{detail}_p{percent}_ms") for s in _SHARES}
            _line(open_loop, found, f"{label} p{percent}")
    _style(open_loop, "Open loop (Poisson)", "% of the highest rate", "ms")
    open_loop.set_xscale("linear")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def stored(results: Results, file: Path) -> None:
    """Draw costs against rows already stored."""
    figure, (rates, latency) = plt.subplots(1, 2, figsize=(11, 4))
    _line(rates, {n: _rate(results, name) for name, n in _STORED.items()}, "insert")
    processed = {n: _of(results, name, "process_per_s") for name, n in _STORED.items()}
    _line(rates, processed, "process")
    _style(rates, "Rates", "million rows stored (0.1: none)", "events/s")
    for what in ("get", "list", "sweep"):
        found = {n: _of(results, name, f"{what}_p50_ms") for name, n in _STORED.items()}
        _line(latency, found, what)
    _style(latency, "Latency, p50", "million rows stored (0.1: none)", "ms")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def _rate(results: Results, name: str) -> float | None:
    line = results.get(name)
    if line is None:
        return None
    value = float(line["value"])
    return 1e3 / value if line["unit"] == "ms" else value


def _of(results: Results, name: str, detail: str) -> float | None:
    found: float | None = results[name]["detail"].get(detail) if name in results else None
    return found


def _line(
    axes: Any, points: Mapping[int, float | None] | Mapping[float, float | None], label: str
) -> None:
    known = {x: y for x, y in points.items() if y is not None}
    if known:
        axes.plot(list(known), list(known.values()), marker="o", label=label)
    else:
        print(f"! no results for the line {label!r}", file=sys.stderr)


def _style(axes: Any, title: str, across: str, up: str) -> None:
    """Label a panel; raises ValueError when it has nothing to show."""
    if not axes.lines:
        raise ValueError(f"the panel {title!r} is blank")
    axes.set(title=title, xlabel=across, ylabel=up, xscale="log")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()


if __name__ == "__main__":
    lines = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    by_name = {line["name"]: line for line in lines}
    load(by_name, Path(sys.argv[2]) / "load.png")
    stored(by_name, Path(sys.argv[2]) / "stored.png")
