"""What `ingest-service doctor` says of one thing."""

from enum import Enum
from typing import NamedTuple


class Verdict(Enum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(NamedTuple):
    """One line of the report."""

    check: str
    verdict: Verdict
    text: str


def judged(check: str, good: bool, text: str, advice: str, *, fail: bool = False) -> Finding:  # noqa: FBT001  # read in a row
    """Return OK for what is good; else a warning, or with `fail` a failure, and what to do."""
    if good:
        return Finding(check, Verdict.OK, text)
    return Finding(check, Verdict.FAIL if fail else Verdict.WARN, f"{text}: {advice}")
