"""Real processes under test: started in a group of their own, watched, and always ended."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.kit.waiting import eventually

#: Settings of whoever runs the tests must not reach the processes under test.
_NOT_INHERITED = ("INGEST_", "DRAMATIQ_", "dramatiq_", "TEST_")


def leash(signal_name: str = "KILL") -> list[str]:
    """Return the prefix of a command that shall get this signal when the test run itself dies.

    The kernel watches the starting thread, so start processes from a thread that stays. Without
    setpriv (it is Linux's) the fixtures still end what they started, but a SIGKILL of the test run
    leaves its processes behind.
    """
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    return [setpriv, "--pdeathsig", signal_name, "--"] if setpriv else []


def has_ended(pid: int) -> bool:
    """Return whether a process is gone, or dead and not yet reaped."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        os.kill(pid, 0)
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except FileNotFoundError:
        return Path("/proc/self").exists()  # gone just now, or a system without /proc


class Process:
    """A started process, with its output kept in two files."""

    def __init__(self, popen: subprocess.Popen[bytes], stdout: Path, stderr: Path) -> None:
        self._popen = popen
        self._stdout = stdout
        self._stderr = stderr

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its group."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._popen.poll()

    def stdout(self) -> str:
        """Return everything written to standard output so far."""
        return self._stdout.read_text(errors="replace")

    def stderr(self) -> str:
        """Return everything written to standard error so far."""
        return self._stderr.read_text(errors="replace")

    def output(self) -> str:
        """Return standard output, then standard error, for messages."""
        return self.stdout() + self.stderr()

    def send_signal(self, number: signal.Signals) -> None:
        """Signal this process alone; nothing happens when it has ended."""
        self._popen.send_signal(number)

    def terminate(self) -> None:
        """Ask this process to end (SIGTERM)."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End this process alone at once (SIGKILL); its children stay."""
        self.send_signal(signal.SIGKILL)

    def kill_group(self) -> None:
        """End this process and all that it started at once (SIGKILL)."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self._popen.wait()

    def wait(self, timeout: float = 30.0) -> int:
        """Return the exit code; an AssertionError with the output when it does not end in time."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s:\n{self.output()}") from None


def start_process(
    args: Sequence[str | Path],
    folder: Path,
    *,
    env: Mapping[str, str] | None = None,
    ready: Callable[[Process], object] | None = None,
    timeout: float = 30.0,
) -> Process:
    """Start a process and return it once `ready(process)` is true.

    `env` is laid over the environment of the test run, less the settings of the service itself.
    Output goes to files in `folder`, numbered so that a restarted process has its own.
    """
    number = len(list(folder.glob("*.out")))
    stdout, stderr = folder / f"{number}.out", folder / f"{number}.err"
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)
    }
    with stdout.open("wb") as out, stderr.open("wb") as err:
        popen = subprocess.Popen(
            [*leash(), *args],
            env={**inherited, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    process = Process(popen, stdout, stderr)
    if ready is None:
        return process

    def is_ready() -> object:
        if process.returncode is not None:
            raise RuntimeError(f"ended with {process.returncode}:\n{process.output()}")
        return ready(process)

    try:
        eventually(is_ready, timeout)
    except AssertionError as error:
        process.kill_group()
        raise AssertionError(f"{args} not ready: {error}\n{process.output()}") from error
    except BaseException:
        process.kill_group()
        raise
    return process


class Processes:
    """Starts processes and ends all of them with `close`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Process] = []

    def start(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        ready: Callable[[Process], object] | None = None,
        timeout: float = 30.0,
    ) -> Process:
        """Start a process as `start_process` does, to be ended with the others."""
        process = start_process(args, self._folder, env=env, ready=ready, timeout=timeout)
        self._started.append(process)
        return process

    def close(self) -> None:
        """End every process that was started, and whatever those have started."""
        for process in self._started:
            process.kill_group()
