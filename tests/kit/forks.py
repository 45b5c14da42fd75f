"""Runs commands in forks of one process that has loaded all libraries: many in a moment."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_PROGRAM = """
import json, os, sys, tempfile
import eventstore.migrations, ingest_service.app, ingest_service.cli, ingest_service.doctor

for command, env in json.load(sys.stdin):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            os.environ.clear()
            os.environ.update(env)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = ["ingest-service", command]
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


def run_all(cases: Sequence[tuple[str, Mapping[str, str]]]) -> list[Ended]:
    """Run commands of `ingest-service` that end by themselves, each with its environment."""
    path = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=json.dumps([(command, {**path, **env}) for command, env in cases]),
        env=path,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stderr == ""
    return [Ended(*json.loads(line)) for line in done.stdout.splitlines()]
