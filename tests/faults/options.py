"""Options of the fault suite and its report, as a plugin of pytest.

Rows may be run by workers of pytest-xdist: the seed goes out to them, and their lines come back.
"""

import os
import random
from dataclasses import asdict
from typing import Any

import pytest

from tests.faults.report import Line, Report

REPORT = pytest.StashKey[Report]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Flags of the suite; the seed has an environment variable for runs that start above it."""
    group = parser.getgroup("faults")
    group.addoption("--faults", action="store_true", help="run every row, in the short form")
    group.addoption("--faults-long", action="store_true", help="run every row, at full counts")
    group.addoption("--faults-seed", type=int, help="seed of every random choice")
    group.addoption("--storm-seconds", type=float, help="length of the storm (row 39)")
    group.addoption(
        "--faults-report", default="build/faults-report.md", help="where the report goes"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, choose the seed, begin the report."""
    config.addinivalue_line("markers", "row(number, title): a row of the fault table")
    config.addinivalue_line("markers", "beside_others: a row that may share the machine: no times")
    given = getattr(config, "workerinput", {}).get("faults_seed") or config.option.faults_seed
    config.stash[REPORT] = Report(
        form="long" if config.option.faults_long else "short",
        seed=given
        or int(os.environ.get("FAULTS_SEED", "0"))
        or random.SystemRandom().randrange(1, 1 << 30),
    )


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give a worker of pytest-xdist the seed of this run."""
    node.workerinput["faults_seed"] = node.config.stash[REPORT].seed


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send a worker's lines to whoever writes the report."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["fault_rows"] = [asdict(line) for line in session.config.stash[REPORT].lines]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take a worker's lines; one that crashed has sent none."""
    rows = getattr(node, "workeroutput", {}).get("fault_rows", [])
    node.config.stash[REPORT].lines += [Line(**row) for row in rows]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the report and write it down."""
    report = terminalreporter.config.stash[REPORT]
    if not report.lines:
        return
    terminalreporter.section("fault suite")
    for line in report.text():
        terminalreporter.line(line)
    report.write(terminalreporter.config.rootpath / terminalreporter.config.option.faults_report)
