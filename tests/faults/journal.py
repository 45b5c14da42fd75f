"""What the clients did, one JSON line per fact, on disk before the next action."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One fact about one operation."""

    #: CLOCK_MONOTONIC, which all processes of the machine share.
    at: float
    writer: str
    #: new, resend, conflict or poll.
    op: str
    #: The idempotency key; for polls, too.
    key: str
    #: invoke, ok, refused, unknown, gave_up, seen or violation.
    fact: str
    event_id: str = ""
    duplicate: bool = False
    #: The gRPC code, ErrorInfo's reason, or the text of a violation.
    code: str = ""
    #: Milliseconds of the attempt.
    ms: float = 0.0
    #: For polls: the status seen.
    status: int = 0


class Journal:
    """The writing end; threads may share it, because a line is written with one call."""

    def __init__(self, path: Path) -> None:
        """Append to a file."""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, entry: Entry) -> None:
        """Write an entry; it is with the kernel when this returns, so a SIGKILL keeps it."""
        os.write(self._file, (json.dumps(asdict(entry)) + "\n").encode())

    def note(self, writer: str, op: str, key: str, fact: str, **rest: object) -> None:
        """Write an entry of now."""
        self.write(
            Entry(at=time.monotonic(), writer=writer, op=op, key=key, fact=fact, **rest)  # type: ignore[arg-type]
        )


@dataclass(frozen=True, slots=True)
class History:
    """Everything that clients wrote, in order of time."""

    entries: tuple[Entry, ...]

    @classmethod
    def read(cls, *paths: Path) -> Self:
        """Read journals; a last line that was cut short never happened."""
        entries = [entry for path in paths if path.exists() for entry in _entries(path)]
        return cls(tuple(sorted(entries, key=lambda entry: entry.at)))

    def facts(
        self, fact: str, *, op: str = "", after: float = 0.0, before: float = 1e18
    ) -> "History":
        """Keep the entries of one kind and one span of time."""
        return History(
            tuple(
                entry
                for entry in self.entries
                if entry.fact == fact and (not op or entry.op == op) and after <= entry.at < before
            )
        )

    def begun(self, *, after: float, before: float = 1e18) -> "History":
        """Keep the entries of attempts that began in one span of time, whenever they ended."""
        return History(
            tuple(entry for entry in self.entries if after <= entry.at - entry.ms / 1000 < before)
        )

    def milliseconds(self, share: float = 0.99) -> float:
        """Return this quantile of the latencies; raises AssertionError without entries."""
        times = sorted(entry.ms for entry in self.entries)
        assert times, "nothing was answered"
        return times[min(len(times) - 1, int(len(times) * share))]

    def __len__(self) -> int:
        return len(self.entries)


def _entries(path: Path) -> Iterator[Entry]:
    for line in path.read_bytes().split(b"\n")[:-1]:
        yield Entry(**json.loads(line))
