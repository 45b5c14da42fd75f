"""The verdict V: what must hold after every fault, judged from journals, database and logs."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults.journal import Entry, History
from tests.faults.ledger import Ledger, StoredRow
from tests.faults.load import Plan
from tests.faults.supervisor import Member

_PENDING, _PROCESSED = 1, 2
_TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n(?: .*\n)+.*")
#: Most examples of one kind that are told.
_MOST = 5

#: What Dramatiq's master says when one of its processes has died. Only rows that kill one, and not
#: the whole worker, allow it.
CHILD_LINES = (r"exited unexpectedly \(code -?\d+\)",)
#: What Dramatiq says besides when Redis is away, full, or does not answer (Bogdanp/dramatiq#894,
#: #895): it tears the consumer down and starts it again, and calls a lost acknowledgement its own
#: bug. Only rows that do this to Redis allow it.
BROKER_LINES = (
    r"Consumer encountered (a connection|an unexpected) error",
    r"Unhandled error during post_process_message",
)


def judge(
    ledger: Ledger, subject: str, history: History, *, may_fail: Sequence[str] = ()
) -> list[str]:
    """Return every violation; keys in `may_fail` may also end FAILED or INVALID."""
    violations = [
        *_told(history),
        *_stored(ledger, subject, history, frozenset(may_fail)),
    ]
    counted = Counter(text.partition(": ")[0] for text in violations)
    seen: Counter[str] = Counter()
    kept = []
    for text in violations:
        kind = text.partition(": ")[0]
        seen[kind] += 1
        if seen[kind] <= _MOST:
            kept.append(text)
    return [*kept, *(f"{kind}: {n} in all" for kind, n in counted.items() if n > _MOST)]


def idle_writers(history: History, plans: Sequence[Plan]) -> list[str]:
    """Return the writers of these plans of whom no new event was answered OK."""
    heard = {entry.key.rpartition("-")[0] for entry in history.facts("ok", op="new").entries}
    return [
        f"no load: {writer} of {plan.run} was never answered OK"
        for plan in plans
        for writer in plan.writers
        if f"{plan.run}-{writer}" not in heard
    ]


def judge_keyless(ledger: Ledger, subject: str, stored: int) -> list[str]:
    """Return every violation of events without a key, of which so many were answered OK."""
    rows = ledger.stored(subject)
    found = [f"{len(rows)} are stored, not {stored}"] if len(rows) != stored else []
    for row in rows:
        wrong = {
            "status went backwards in the database": row.steps_back > 0,
            **(_of_open(row) if row.status == _PENDING else _of_final(row, may_fail=False)),
        }
        found += [f"{text}: {row.id}" for text, is_so in wrong.items() if is_so]
    return [*found[:_MOST], *([f"{len(found)} in all"] if len(found) > _MOST else [])]


def _told(history: History) -> Iterator[str]:
    """What clients saw."""
    for entry in history.facts("violation").entries:
        yield f"{entry.code}: {entry.key} at {entry.at:.3f} ({entry.writer} {entry.op})"
    final: dict[str, Entry] = {}
    for entry in history.facts("seen").entries:
        before = final.get(entry.key)
        # Two pollers' lines may cross, so only what was asked after the answer counts.
        if (
            before is not None
            and before.status != entry.status
            and before.at < entry.at - entry.ms / 1000
        ):
            yield f"status went backwards: {entry.key} from {before.status} to {entry.status}"
        if entry.status != _PENDING:
            final.setdefault(entry.key, entry)


def _stored(
    ledger: Ledger, subject: str, history: History, may_fail: frozenset[str]
) -> Iterator[str]:
    """What the database holds, against what clients sent and were told."""
    sent = {entry.key for entry in history.facts("invoke", op="new").entries}
    acked = {entry.key: entry.event_id for entry in history.facts("ok", op="new").entries}
    found: Counter[str] = Counter()
    for row in ledger.stored(subject):
        key = row.key
        found[key] += 1
        wrong = {
            "stored but never sent": key not in sent,
            "stored under another id than the receipt's": acked.get(key, row.id) != row.id,
            "stored with other content": row.content != key or row.other,
            "stored twice": found[key] > 1,
            "status went backwards in the database": row.steps_back > 0,
            **(_of_open(row) if row.status == _PENDING else _of_final(row, key in may_fail)),
        }
        for text, is_so in wrong.items():
            if is_so:
                yield f"{text}: {key}"
    for key in acked.keys() - found.keys():
        yield f"acknowledged but missing: {key}"


def _of_open(row: StoredRow) -> dict[str, bool]:
    return {"left open": True, "an effect without an end": row.effects > 0}


def _of_final(row: StoredRow, may_fail: bool) -> dict[str, bool]:
    return {
        f"effects are {row.effects}, not one": row.effects != 1,
        "final without processed_at": not row.stamped,
        "processed_at is before received_at": row.early,
        f"not processed ({row.error})": row.status != _PROCESSED and not may_fail,
        "not processed, without a reason": row.status != _PROCESSED and not row.error,
    }


class LogWatch:
    """The error lines that processes write from its making on."""

    def __init__(self, members: Sequence[Member]) -> None:
        """Remember where each file ends now."""
        self._members = members
        self._sizes = {path: path.stat().st_size for path in self._files()}

    def findings(self, allowed: Sequence[str] = ()) -> list[str]:
        """Return unexpected lines at ERROR or above, and tracebacks."""
        patterns = [re.compile(pattern) for pattern in allowed]
        found = [
            f"unexpected line: {name}: {line[:2000]}"
            for name, line in self._new_lines()
            if _is_error(line) and not any(pattern.search(line) for pattern in patterns)
        ]
        return found[:_MOST]

    def lines(self, event: str) -> list[dict[str, object]]:
        """Return the JSON lines of one event since then."""
        return [
            {"process": name, **json.loads(line)}
            for name, line in self._new_lines()
            if line.startswith("{") and f'"event": "{event}"' in line
        ]

    def count(self) -> int:
        """Return how many lines were written since then."""
        return sum(1 for _ in self._new_lines())

    def _new_lines(self) -> Iterator[tuple[str, str]]:
        for path in self._files():
            with path.open("rb") as file:
                file.seek(self._sizes.get(path, 0))
                text = file.read().decode(errors="replace")
            # A traceback is one line up to its exception, which alone says what it is about.
            joined = _TRACEBACK.sub(lambda found: found[0].replace("\n", " | "), text)
            for line in joined.splitlines():
                yield path.parent.name, line

    def _files(self) -> list[Path]:
        return [path for member in self._members for path in sorted(member.folder.glob("*.err"))]


def _is_error(line: str) -> bool:
    if line.startswith("{"):
        return '"level": "error"' in line or '"level": "critical"' in line
    return "Traceback" in line or "[ERROR]" in line or "[CRITICAL]" in line
