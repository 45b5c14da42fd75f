"""The rig that rows share, and what each knows of its run.

`make test` runs the smoke and what needs no rig; `make test-faults` (`--faults`) runs every row.
"""

import random
import shutil
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.faults.options import REPORT
from tests.faults.report import Line
from tests.faults.rig import BRISK, Rig
from tests.faults.trial import Trial

_OUTCOME = pytest.StashKey[pytest.TestReport]()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the rows to the runs that ask for them."""
    wanted = config.option.faults or config.option.faults_long
    return True if collection_path.name.startswith("test_row") and not wanted else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the outcome of the call where fixtures find it."""
    result = yield
    if result.when == "call":
        item.stash[_OUTCOME] = result
    return result


class Case:
    """What a row knows of the run it is part of."""

    def __init__(self, *, long: bool, seed: int, line: Line, storm_seconds: float | None) -> None:
        self.long = long
        self.seed = seed
        self.storm_seconds = storm_seconds
        self.random = random.Random(f"{seed} {line.row}")  # noqa: S311  # repeatable, no secret
        self._line = line

    def count(self, short: int, long: int) -> int:
        """Return how often, or for how many seconds, in this form."""
        return long if self.long else short

    def note(self, text: str) -> None:
        """Add a figure to the report."""
        self._line.notes.append(text)

    def cannot(self, reason: str) -> NoReturn:
        """Say in the report why this row cannot run here, and skip it."""
        self.note(reason)
        pytest.skip(reason)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """This row's form, seed and line in the report."""
    config = request.config
    report = config.stash[REPORT]
    marker = request.node.get_closest_marker("row")
    number, title = marker.args if marker else ("-", request.node.name)
    line = report.add(str(number), title)
    began = time.monotonic()
    yield Case(
        long=report.form == "long",
        seed=report.seed,
        line=line,
        storm_seconds=config.option.storm_seconds,
    )
    outcome = request.node.stash.get(_OUTCOME, None)
    line.result = outcome.outcome if outcome else "error"
    if outcome is not None and outcome.failed:
        text = outcome.longreprtext.splitlines()
        line.notes += [said[2:].strip()[:200] for said in text if said.startswith("E  ")][:3]
    line.seconds = time.monotonic() - began


@pytest.fixture(scope="package")
def rigs(request: pytest.FixtureRequest) -> Iterator[list[Rig]]:
    """The rig that rows share; a row that cannot restore it has it made anew."""
    kept: list[Rig] = []
    yield kept
    for rig in kept:
        rig.close()


@pytest.fixture
def rig(rigs: list[Rig], request: pytest.FixtureRequest) -> Iterator[Rig]:
    """The shared rig, running and whole: one server, two workers."""
    if not rigs:
        long = request.config.stash[REPORT].form == "long"
        rigs.append(Rig(durable=True, settings={} if long else BRISK))
        rigs[0].start()
        warm = Trial(rigs[0], seed=1)
        warm.load()
        time.sleep(2)
        warm.verdict()
    yield rigs[0]
    outcome = request.node.stash.get(_OUTCOME, None)
    try:
        rigs[0].restore()
        sound = outcome is not None and not outcome.failed
    except (AssertionError, RuntimeError, OSError):
        sound = False
    if not sound:
        # What its processes said is the only witness of what happened.
        logs = request.config.rootpath / "build" / "faults-logs" / request.node.name
        shutil.rmtree(logs, ignore_errors=True)
        shutil.copytree(rigs[0].folder, logs)
        rigs.pop().close()


@pytest.fixture
def trial(rig: Rig, case: Case) -> Iterator[Trial]:
    """A trial on the shared rig; whatever load it started is ended."""
    made = Trial(rig, seed=case.random.randrange(1 << 30))
    yield made
    for load in made.loads:
        load.kill()
