"""Several server processes on one port: starts them before gRPC is touched, and restarts them."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from types import FrameType

import structlog

log = structlog.get_logger()

#: The supervisor's process id, for those that it started; they share the port (SO_REUSEPORT).
_MARK = "INGEST_SUPERVISED"
#: Seconds before a process that ended is started again.
_RESTART_PAUSE = 1.0
_POLL = 0.2
#: Exit code of a process whose settings cannot work.
_USAGE = 2


def is_supervised() -> bool:
    """Whether this process was started by `supervise`."""
    return _MARK in os.environ


def end_with_parent() -> None:
    """Have this process told to end when its supervisor is gone, whatever ended that."""
    # As it was told: a supervisor that was killed at once is not our parent any more.
    parent = int(os.environ[_MARK])

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_RESTART_PAUSE)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def ends() -> tuple[signal.Signals, ...]:
    """Return the signals that end a server in good order: a lost terminal, too, but for nohup."""
    hung_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGTERM, signal.SIGINT, *hung_up)


def supervise(count: int, command: Sequence[str]) -> int:
    """Run `count` processes until one of the signals that end a server; returns the exit code.

    A second signal ends them at once. A process that ends is started again, and when one of the
    first cannot work with its settings all end. The processes are new ones and no forks: gRPC does
    not survive a fork.
    """
    environment = {**os.environ, _MARK: str(os.getpid()), "INGEST_PROCESSES": "1"}
    stopping = False
    children: list[subprocess.Popen[bytes]] = []
    is_first = [True] * count

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        # A terminal that is closed may say so twice.
        for child in children if stopping and number != signal.SIGHUP else ():
            child.kill()
        stopping = True

    for number in ends():
        signal.signal(number, stop)
    # The command is our own interpreter and module.
    children += [subprocess.Popen(command, env=environment) for _ in range(count)]  # noqa: S603
    while not stopping:
        time.sleep(_POLL)
        for index, child in enumerate(children):
            if child.poll() == _USAGE and is_first[index]:
                # Wrong settings are no better the next time. For those that come later they were
                # right: a file may be half written at this moment, and the others go on.
                stopping = True
            elif child.poll() is not None and not stopping:
                log.error("server_process_ended", pid=child.pid, code=child.returncode)
                time.sleep(_RESTART_PAUSE)
                if not stopping:
                    is_first[index] = False
                    children[index] = subprocess.Popen(command, env=environment)  # noqa: S603
    for child in children:
        child.terminate()
    # One that still starts knows no better way to end when it is told to.
    codes = [abs(code) for child in children if (code := child.wait()) != -signal.SIGTERM]
    return _USAGE if _USAGE in codes else max(codes, default=0)
