"""The table for people and the lines for machines."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figure import Measured

RESULTS = Path(__file__).parent / "results" / "latest.jsonl"
QUICK_RESULTS = RESULTS.with_name("quick.jsonl")
_HEAD = ("figure", "value", "min", "max", "unit", "limit", "ratio", "target", "met")


def lines(measured: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """Return one object for each figure, beside the limits measured in the same run."""
    return [
        m.as_json(_limit(m, measured), doubtful=_is_doubtful(m, measured))
        for m in measured.values()
        if m.samples
    ]


def write(found: Sequence[Mapping[str, Any]], file: Path = RESULTS) -> None:
    """Write one JSON object a line."""
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in found))


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the figures as a Markdown table."""
    rows = [_HEAD, tuple("---" for _ in _HEAD), *map(_row, found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    rows[1] = tuple("-" * width for width in widths)
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    )


def details(found: Sequence[Mapping[str, Any]]) -> str:
    """Return what else was seen, a line for each figure; the last is the worst of its runs."""
    return "\n".join(
        f"{line['name']}: " + ", ".join(f"{k} {v:g}" for k, v in seen.items())
        for line in found
        if (seen := line["detail"] | _busy(line))
    )


def not_measured(measured: Mapping[str, Measured]) -> list[str]:
    """Return the figures that were asked for and have no value, for whatever reason."""
    return [name for name, one in measured.items() if not one.samples]


def correctness(found: Sequence[Mapping[str, Any]], missing: Sequence[str] = ()) -> str:
    """Return the line on events lost, doubled or stuck, and on what was not measured."""
    faults = [f"{line['name']}: {fault}" for line in found for fault in line["faults"]]
    faults += [f"{line['name']}: {line['failed']} runs failed" for line in found if line["failed"]]
    faults += [f"NOT MEASURED: {name}" for name in missing]
    checked = sum(line["checked"] for line in found)
    good = "lost 0, doubled 0, altered 0, stuck 0" if checked else "nothing was checked"
    return "correctness: " + ("; ".join(faults) or good)


def quietness(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the line on what else ran on the machine."""
    when = ("before", "during")
    worst = {w: max((line[f"busy_{w}_percent"] or 0 for line in found), default=0) for w in when}
    noisy = [line["name"] for line in found if line["doubtful"]]
    verdict = f"NOT QUIET, which puts in doubt: {', '.join(noisy)}" if noisy else "quiet"
    return (
        f"machine: {verdict} (others used up to {worst['before']:.0f} % of all cores before a"
        f" measurement and {worst['during']:.0f} % during one)"
    )


def _busy(line: Mapping[str, Any]) -> dict[str, float]:
    busy = line["busy_during_percent"]
    return {} if busy is None else {"others_percent": busy}


def _is_doubtful(one: Measured, measured: Mapping[str, Measured]) -> bool:
    """Whether a figure, what it is a detail of, or the limit of its target was taken amid noise."""
    target = one.figure.target
    beside = one.figure.limits if target and target.needs_limit else ()
    return one.noisy or any(
        _is_doubtful(measured[name], measured) for name in (*(one.figure.of or ())[:1], *beside)
    )


def _limit(one: Measured, measured: Mapping[str, Measured]) -> float | None:
    names = one.figure.limits
    if not names or not all(measured[name].samples for name in names):
        return None
    return sum(measured[name].value for name in names)


def _row(line: Mapping[str, Any]) -> tuple[str, ...]:
    limit = "" if line["limit"] is None else f"{_number(line['limit'])} {line['limit_name']}"
    met = {None: "?", True: "yes", False: "NO"}[line["met"]] if line["target"] else ""
    return (
        line["name"],
        *(_number(line[key]) for key in ("value", "min", "max")),
        line["unit"],
        limit,
        "" if line["ratio"] is None else f"{line['ratio']:.2f}",
        line["target"] or "",
        met,
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1_000 else f"{value:g}"
