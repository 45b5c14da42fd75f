"""Keeps processes running: what dies is started again, and when that was is remembered."""

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.kit.processes import Process, has_ended, start_process
from tests.kit.waiting import eventually

_LOOK = 0.05
#: Seconds before another try when a process does not come up.
_AGAIN = 0.3


@dataclass(slots=True)
class Restart:
    """One death and what followed; times of CLOCK_MONOTONIC."""

    died: float
    ready: float
    code: int


@dataclass(slots=True)
class _State:
    process: Process | None = None
    restarts: list[Restart] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    #: The last one that the test itself ended, and how others ended.
    ended: Process | None = None
    crashes: list[str] = field(default_factory=list)


class Member:
    """One supervised process and its successors."""

    def __init__(
        self,
        name: str,
        args: Sequence[str | Path],
        folder: Path,
        *,
        env: Mapping[str, str],
        ready: Callable[[Process], object],
    ) -> None:
        """Take the command; `start` starts it. Output goes to numbered files in `folder`."""
        self.name = name
        self.folder = folder
        self.env = dict(env)
        self._args = args
        self._ready = ready
        self._state = _State()
        #: Whether what a dead process leaves behind is ended before the next one starts.
        self.ends_orphans = True
        self._keep = threading.Event()
        self._thread: threading.Thread | None = None
        folder.mkdir(parents=True)

    @property
    def process(self) -> Process:
        """The process that runs now, or ran last."""
        assert self._state.process is not None, f"{self.name} was never started"
        return self._state.process

    @property
    def pid(self) -> int:
        """The id of the process that runs now."""
        return self.process.pid

    @property
    def restarts(self) -> Sequence[Restart]:
        """Every death that was answered with a new process."""
        return self._state.restarts

    @property
    def crashes(self) -> Sequence[str]:
        """How each process ended that ended by itself: not by a method of this object."""
        return self._state.crashes

    @property
    def started(self) -> bool:
        """Whether it was ever started."""
        return self._state.process is not None

    @property
    def up(self) -> bool:
        """Whether a process runs and was ready."""
        return self._state.process is not None and self._state.process.returncode is None

    def start(self) -> None:
        """Start the process and keep one running from now on; returns when it is ready."""
        self._keep.set()
        before = self._state.process
        # This thread starts every process: the kernel ends them with the thread that did.
        self._thread = threading.Thread(target=self._run, name=f"keep-{self.name}", daemon=True)
        self._thread.start()
        try:
            eventually(
                lambda: self._state.process is not before and self.up, timeout=40, interval=_LOOK
            )
        except AssertionError as error:
            raise AssertionError(f"{self.name}: {error}; {self._state.failures[-1:]}") from None

    def ensure(self) -> None:
        """Have the process running: wait for one that is being started again, or start it."""
        if self._keep.is_set():
            eventually(lambda: self.up, timeout=40, interval=_LOOK)
        else:
            self.start()

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 40.0) -> int:
        """End the process by a signal, start no other, and return the exit code."""
        self._keep.clear()
        process = self._end()
        if process.returncode is None:
            process.send_signal(number)
        try:
            code = process.wait(timeout)
        finally:
            process.kill_group()
            if self._thread is not None:
                self._thread.join(40)
        if process is self._state.ended and code < 0 and code != -number:
            self._state.crashes.append(f"ended with {code} when told to end")
        return code

    def discard(self) -> None:
        """End the process at once, for good."""
        self._keep.clear()
        self._end().kill_group()
        if self._thread is not None:
            self._thread.join(40)

    def kill(self) -> None:
        """End the process and all it started (SIGKILL); another one is started."""
        self._end().kill_group()

    def kill_alone(self) -> None:
        """End the process and nothing that it started (SIGKILL); another one is started."""
        self._end().kill()

    def kill_and_wait(self) -> Restart:
        """Do as `kill` and wait until the next one is ready."""
        count = len(self.restarts)
        self.kill()
        return self.wait_restart(count)

    def wait_restart(self, count: int, timeout: float = 40.0) -> Restart:
        """Wait until more than `count` restarts have happened, and return the newest."""
        eventually(lambda: len(self.restarts) > count, timeout=timeout, interval=_LOOK)
        return self.restarts[-1]

    def signal_all(self, number: signal.Signals) -> None:
        """Signal the process and all it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def children(self) -> list[int]:
        """Return what the process itself has started and what lives, the oldest first."""
        return [pid for pid in _children(self.pid) if not has_ended(pid)]

    def pids(self) -> list[int]:
        """Return the process and its descendants that live."""
        found = [self.pid]
        for pid in found:
            found += _children(pid)
        return [pid for pid in found if not has_ended(pid)]

    def stderr(self) -> str:
        """Return what all processes of this member have written to standard error."""
        files = sorted(self.folder.glob("*.err"), key=lambda file: int(file.stem))
        return "".join(file.read_text(errors="replace") for file in files)

    def _end(self) -> Process:
        """Return the process, whose end is from now on no crash, unless it has ended."""
        process = self.process
        if process.returncode is None:
            self._state.ended = process
        return process

    def _run(self) -> None:
        died = time.monotonic()
        code: int | None = None
        while self._keep.is_set():
            try:
                process = start_process(
                    self._args, self.folder, env=self.env, ready=self._ready, timeout=30
                )
            except (RuntimeError, AssertionError) as error:
                self._state.failures.append(str(error))
                if isinstance(error, RuntimeError):  # it ended; the other is only slow
                    how = str(error).partition(":")[0]
                    self._state.crashes.append(f"{how} before it was ready")
                time.sleep(_AGAIN)
                continue
            if not self._keep.is_set():
                process.kill_group()
                break
            if code is not None:
                self._state.restarts.append(Restart(died=died, ready=time.monotonic(), code=code))
            self._state.process = process
            while (ended := process.returncode) is None and self._keep.is_set():
                time.sleep(_LOOK)
            died, code = time.monotonic(), ended
            if ended is not None and process is not self._state.ended:
                self._state.crashes.append(f"ended with {ended}")
            if self._keep.is_set() and self.ends_orphans:
                process.kill_group()
        if self._state.process is not None:
            with suppress(AssertionError):
                self._state.process.wait(60)


def _children(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in children.split()]
