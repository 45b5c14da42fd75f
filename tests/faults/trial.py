"""One trial: a user of its own, load, faults, and at the end the verdict."""

import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc

from ingest.v1.event_pb2 import EventInput
from ingest.v1.ingest_service_pb2 import SubmitEventRequest
from ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from tests.faults.journal import History, Journal
from tests.faults.load import CHANNEL, Plan
from tests.faults.rig import System, make_token
from tests.faults.supervisor import Member
from tests.faults.verdict import LogWatch, idle_writers, judge, judge_keyless
from tests.kit.processes import Process, start_process
from tests.kit.waiting import eventually

#: Seconds after the last fault in which every row comes to its end.
SETTLE_SECONDS = 60.0
#: Descriptors and threads that a process may have more than at its baseline: pools fill up.
_MORE_DESCRIPTORS = 12
_MORE_THREADS = 6


class Load:
    """A running load process."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        """Start it and wait for its first line."""
        self.plan = plan
        self.ended = False
        self.killed = False
        folder.mkdir(parents=True, exist_ok=True)
        self.process: Process = start_process(
            [sys.executable, "-m", "tests.faults.clients", plan.as_argument()],
            folder,
            ready=lambda process: process.stdout(),
        )

    def stop(self) -> None:
        """Let every writer finish what it began, and end the process."""
        self.process.terminate()
        self.ended = True
        try:
            code = self.process.wait(self.plan.patience + 40)
        except AssertionError:
            self.process.send_signal(signal.SIGABRT)  # it tells where its threads stand
            code = self.process.wait()
        assert code == 0, f"load ended with {code}:\n{self.process.output()}"

    def kill(self) -> None:
        """End it at once (SIGKILL); nothing is asked of what it did."""
        self.ended = self.killed = True
        self.process.kill_group()


class Trial:
    """Load and verdict for one row; every trial has a user of its own."""

    def __init__(self, rig: System, *, seed: int) -> None:
        """Watch the logs from now on."""
        self.rig = rig
        self.random = random.Random(seed)  # noqa: S311  # repeatable, no secret
        self.subject = f"trial-{uuid4().hex[:12]}"
        self.token = make_token(self.subject)
        self.folder = rig.folder / self.subject
        self.logs = LogWatch(rig.members)
        self.loads: list[Load] = []
        self.folder.mkdir()
        self.journal = Journal(self.folder / "trial.jsonl")
        #: Of the events that `submit` stored, by id.
        self.keys: dict[str, str] = {}
        #: Never twice in one trial, for keys.
        self.numbers = itertools.count()
        self._stubs: dict[int, IngestServiceStub] = {}
        self.take_counts()
        self._crashes = {member.name: len(member.crashes) for member in rig.members}

    def take_counts(self) -> None:
        """Take what runs now for what must run at the end: processes, descriptors, threads."""
        running = _running(self.rig)
        self._counts = {member.name: counts(member.pids()) for member in running}

    def load(self, **changes: Any) -> Load:
        """Start the usual load; `changes` are fields of Plan."""
        plan = {
            "target": self.rig.target(),
            "token": self.token,
            "folder": str(self.folder),
            "run": f"{self.subject}-{len(self.loads)}",
            "seed": self.random.randrange(1 << 30),
        }
        load = Load(Plan(**{**plan, **changes}), self.folder)
        self.loads.append(load)
        return load

    def submit(self, payload: Mapping[str, Any], *, event_type: str = "fault.one") -> str:
        """Submit one event with this payload through the first server; returns its id."""
        key = f"{self.subject}-one-{next(self.numbers)}"
        self.journal.note("trial", "new", key, "invoke")
        event = EventInput(
            type=event_type,
            idempotency_key=key,
            payload_json=json.dumps({"key": key, **payload}),
        )
        answer = self.stub().SubmitEvent(
            SubmitEventRequest(event=event), metadata=self.metadata, timeout=30
        )
        event_id = answer.receipt.event_id
        self.journal.note("trial", "new", key, "ok", event_id=event_id)
        self.keys[event_id] = key
        return event_id

    def history(self) -> History:
        """Return everything that the clients wrote so far."""
        return History.read(*sorted(self.folder.glob("*.jsonl")))

    def settle(self, seconds: float = SETTLE_SECONDS) -> float:
        """Wait until no row is open and return how long that took."""
        began = time.monotonic()
        eventually(lambda: self.rig.ledger.open_rows(self.subject) == 0, seconds, interval=0.1)
        return time.monotonic() - began

    def unary_ms(self, after: float = 0.0, before: float = 1e18, share: float = 0.99) -> float:
        """Return a quantile of the milliseconds of unary submits begun in a span of time.

        Only those count that were answered OK; raises AssertionError when none was.
        """
        return self._unary(after, before).milliseconds(share)

    def steady_ms(self, load: Load, after: float, before: float) -> float:
        """Return the 0.99 quantile, and see to it that at least half of what was due is in it.

        What waits is begun in the span and answered later, so ask when the load has ended.
        """
        found = self._unary(after, before)
        due = load.plan.unary * load.plan.unary_rate * (before - after)
        assert len(found) >= due / 2, f"only {len(found)} of {due:.0f} submits were answered OK"
        return found.milliseconds()

    def _unary(self, after: float, before: float) -> History:
        found = self.history().facts("ok", op="new").begun(after=after, before=before)
        return History(tuple(entry for entry in found.entries if entry.writer.startswith("unary")))

    def violations(
        self,
        *,
        may_fail: Sequence[str] = (),
        may_crash: Sequence[Member] = (),
        allowed: Sequence[str] = (),
        settle: float = SETTLE_SECONDS,
    ) -> list[str]:
        """Stop the load, let everything settle, and return what is wrong.

        `may_fail` are keys of events that need not be processed, `may_crash` members that the row
        ends otherwise than through them, and `allowed` patterns of lines at ERROR.
        """
        found = []
        for load in self.loads:
            try:
                if not load.ended:
                    load.stop()
            except AssertionError as error:
                found.append(f"load: {error}")
        try:
            self.settle(settle)
        except AssertionError as error:
            found.append(f"not settled: {error}")
        history = self.history()
        if not history.facts("ok"):
            found.append("no load: nothing was answered OK")
        found += idle_writers(history, [load.plan for load in self.loads if not load.killed])
        found += judge(self.rig.ledger, self.subject, history, may_fail=may_fail)
        return found + self._of_processes(may_crash, allowed)

    def verdict(
        self,
        *,
        may_fail: Sequence[str] = (),
        may_crash: Sequence[Member] = (),
        allowed: Sequence[str] = (),
    ) -> History:
        """Fail with every violation, or return the history."""
        found = self.violations(may_fail=may_fail, may_crash=may_crash, allowed=allowed)
        assert not found, "\n".join(found)
        return self.history()

    def keyless_violations(self, taken: int, settle: float = SETTLE_SECONDS) -> list[str]:
        """Let everything settle, and return what is wrong with so many events without a key."""
        found = []
        try:
            self.settle(settle)
        except AssertionError as error:
            found.append(f"not settled: {error}")
        found += judge_keyless(self.rig.ledger, self.subject, taken)
        return found + self._of_processes()

    def verdict_keyless(self, taken: int) -> None:
        """Fail with every violation of so many events, which were sent without a key."""
        found = self.keyless_violations(taken)
        assert not found, "\n".join(found)

    def stub(self, server: int = 0) -> IngestServiceStub:
        """Return a stub of this process for single calls."""
        if server not in self._stubs:
            channel = grpc.insecure_channel(self.rig.target(server), options=CHANNEL)
            self._stubs[server] = IngestServiceStub(channel)
        return self._stubs[server]

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The caller's token, as gRPC takes it."""
        return (("authorization", f"Bearer {self.token}"),)

    def _of_processes(
        self, may_crash: Sequence[Member] = (), allowed: Sequence[str] = ()
    ) -> list[str]:
        """What the processes did wrong, whatever is stored."""
        crashes = [
            f"ended by itself: {member.name} {how}"
            for member in self.rig.members
            if member not in may_crash
            for how in member.crashes[self._crashes[member.name] :]
        ]
        return [*crashes, *self.logs.findings(allowed), *self._leaks()]

    def _leaks(self) -> list[str]:
        found = []
        for member in _running(self.rig):
            before = self._counts.get(member.name)
            if before is None:
                continue
            try:
                eventually(lambda m=member, b=before: _is_back(m.pids(), b), 10, interval=0.2)  # type: ignore[misc]
            except AssertionError:
                now = counts(member.pids())
                found.append(f"leak: {member.name} had {before} and now has {now}")
        return found


def counts(pids: Sequence[int]) -> tuple[int, int, int]:
    """Return how many processes, descriptors and threads there are."""
    descriptors = threads = 0
    for pid in pids:
        try:
            descriptors += len(list(Path(f"/proc/{pid}/fd").iterdir()))
            threads += len(list(Path(f"/proc/{pid}/task").iterdir()))
        except OSError:
            continue
    return len(pids), descriptors, threads


def _running(rig: System) -> list[Any]:
    return [member for member in rig.members if member.started and member.up]


def _is_back(pids: Sequence[int], before: tuple[int, int, int]) -> bool:
    now = counts(pids)
    return (
        now[0] == before[0]
        and now[1] <= before[1] + _MORE_DESCRIPTORS
        and now[2] <= before[2] + _MORE_THREADS
    )


def resident(pids: Sequence[int]) -> int:
    """Return how many bytes of memory processes hold."""
    pages = 0
    for pid in pids:
        with suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
