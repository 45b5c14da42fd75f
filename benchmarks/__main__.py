"""The command: chooses figures, measures them in rounds of shuffled order, reports."""

import argparse
import random
import shutil
import subprocess
import sys
import time
import traceback

from benchmarks import document, machine, report
from benchmarks.catalogue import figures
from benchmarks.figure import Figure, Measured, with_limits
from benchmarks.peers.environment import PeerMissingError, peer_python
from benchmarks.references import peers
from benchmarks.stack import Bench, open_bench
from benchmarks.usage import adopt_orphans
from tests.kit.services import MissingServerError

_FULL_RUNS = 5


def main() -> int:
    """Run the benchmark.

    Returns the exit code: 1 when an event was lost, doubled, altered or stuck, or a figure or plot
    is missing; 2 when nothing can be measured.
    """
    options = _parse()
    every = figures()
    if options.list:
        for figure in every:
            print(f"{figure.name:24} {figure.unit:10} {figure.target or ''}")
        return 0
    names = (
        [name.strip() for name in options.only.split(",")]
        if options.only is not None
        else [figure.name for figure in every if figure.key or not options.quick]
    )
    unknown = set(names) - {figure.name for figure in every}
    if unknown:
        print(f"unknown figures: {', '.join(sorted(unknown))}; see --list", file=sys.stderr)
        return 2
    if shutil.which("h2load") is None:
        print("h2load is missing: install nghttp2-client (Debian, Ubuntu)", file=sys.stderr)
        return 2
    chosen = with_limits(names, every)
    runs = (1 if options.quick else _FULL_RUNS) if options.runs is None else options.runs
    if {figure.name for figure in chosen} & {peer.name for peer in peers()}:
        _install_peers()
    adopt_orphans()
    try:
        with open_bench(quick=options.quick) as bench:
            about = machine.describe(bench)
            measured = measure(bench, chosen, runs)
    except MissingServerError as error:
        print(error, file=sys.stderr)
        return 2
    found, missing = report.lines(measured), report.not_measured(measured)
    drawn = True
    if options.quick and options.only is None:
        report.write(found, report.QUICK_RESULTS)
    elif options.only is None:
        report.write(found)
        drawn = draw()
        document.update(found, missing, about)
    print(report.details(found), "", report.table(found), "", sep="\n")
    print(report.correctness(found, missing), report.quietness(found), sep="\n")
    wrong = any(one.failed or one.faults for one in measured.values())
    return int(wrong or bool(missing) or not drawn)


def measure(bench: Bench, chosen: list[Figure], runs: int) -> dict[str, Measured]:
    """Measure every figure once a round, in another order each round."""
    measured = {figure.name: Measured(figure=figure) for figure in chosen}
    for number in range(1, runs + 1):
        todo = [(f, f.probe) for f in chosen if f.probe is not None]
        random.shuffle(todo)
        for figure, probe in todo:
            measured[figure.name].busy_before.append(machine.busy_percent())
            started, others = time.monotonic(), machine.Others()
            try:
                sample = probe(bench)
            except Exception:  # noqa: BLE001  # whatever it is, the other figures go on
                traceback.print_exc()
                measured[figure.name].failed += 1
                print(f"! {figure.name} failed in round {number}", file=sys.stderr)
                continue
            measured[figure.name].samples.append(sample)
            measured[figure.name].busy_during.append(others.percent())
            for other in chosen:
                if other.of and other.of[0] == figure.name:
                    measured[other.name].take(sample)
            took = time.monotonic() - started
            faults = f"  FAULTS {sample.faults}" if sample.faults else ""
            print(
                f"round {number}  {figure.name:20} {sample.value:12,.3f} {figure.unit:9}"
                f" {took:5.1f} s{faults}",
                flush=True,
            )
    return measured


def _install_peers() -> None:
    """Install them before the first round; what cannot be had fails the peers, not the others."""
    try:
        peer_python()
    except PeerMissingError as error:
        print(f"! peers: {error}", file=sys.stderr)


def draw() -> bool:
    """Draw the plots beside the results; returns whether every panel of them shows something."""
    try:
        command = [peer_python(), "-m", "benchmarks.plots", report.RESULTS, report.RESULTS.parent]
        subprocess.run([str(part) for part in command], check=True)
    except (PeerMissingError, subprocess.CalledProcessError) as error:
        print(f"! plots: {error}", file=sys.stderr)
        return False
    return True


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="key figures once, under 3 minutes")
    parser.add_argument("--only", metavar="NAMES", help="these figures and their limits, by comma")
    parser.add_argument("--runs", type=int, help=f"rounds (default {_FULL_RUNS}, or 1 if quick)")
    parser.add_argument("--list", action="store_true", help="list the figures")
    options = parser.parse_args()
    if options.runs is not None and options.runs < 1:
        parser.error("--runs must be 1 or more")
    return options


if __name__ == "__main__":
    sys.exit(main())
