"""Runs commands in forks of one process that has loaded all libraries: each in a moment."""

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.kit.processes import leash

_PROGRAM = """
import json, os, signal, sys, tempfile
import eventstore.migrations, ingest_service.app, ingest_service.cli, ingest_service.doctor
import ingest_service.probe

for line in sys.stdin:
    args, env, folder = json.loads(line)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)  # ends what should have ended by itself
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(env)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            if "worker" in args:  # Dramatiq has the broker set up by importing it anew
                os.execv(sys.executable, [sys.executable, "-m", "ingest_service", *args])
            sys.argv = ["ingest-service", *args]
            try:
                ingest_service.cli.main()
            except SystemExit as ended:
                if isinstance(ended.code, int):
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(ended.code)  # to take everything down again would take longest
                raise
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = [(file.seek(0), file.read().decode(errors="replace"))[1] for file in (out, err)]
        print(json.dumps([code, *said]), flush=True)
"""


class Ended(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    stdout: str
    stderr: str


def run(*args: str, env: Mapping[str, str], cwd: Path | None = None) -> Ended:
    """Run a command of `ingest-service` that ends by itself, in this environment and folder."""
    forker = _forker()
    assert forker.stdin
    assert forker.stdout
    try:
        path = {"PATH": os.environ["PATH"]}
        json.dump([args, {**path, **env}, str(cwd or Path.cwd())], forker.stdin)
        forker.stdin.write("\n")
        forker.stdin.flush()
        return Ended(*json.loads(forker.stdout.readline()))
    except BaseException:
        # Its answer may still come: the next command must not get it.
        forker.kill()
        _forker.cache_clear()
        raise


@cache
def _forker() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*leash(), sys.executable, "-c", _PROGRAM],
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.communicate)
    return process
