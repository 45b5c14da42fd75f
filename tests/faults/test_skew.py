"""The tool of row 36: whichever way a module of the product asks for the time, it is off."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.rig import PYTHONPATH

#: A module that asks in every way there is, within a package of the product's name.
_MODULE = """
import datetime, time
from datetime import UTC, datetime as named
from time import time as called, time_ns

told = lambda: {
    "datetime.datetime.now": datetime.datetime.now(UTC).timestamp(),
    "now": named.now(UTC).timestamp(),
    "now without a zone": named.now().timestamp(),
    "utcnow": named.utcnow().replace(tzinfo=UTC).timestamp(),
    "today": named.today().timestamp(),
    "time.time": time.time(),
    "time": called(),
    "time.time_ns": time.time_ns() / 1e9,
    "time_ns": time_ns() / 1e9,
    "fromtimestamp of the true time": named.fromtimestamp(time.time() - BY, UTC).timestamp() + BY,
    "of the real class": time.time() if isinstance(datetime.datetime.now(), named) else 0,
}
"""
_ASK = "import json, worker.asking as asking; print(json.dumps(asking.told()))"


@pytest.mark.parametrize("seconds", [600, -600])
def test_every_way_to_ask_for_the_time_is_off(tmp_path: Path, seconds: int) -> None:
    package = tmp_path / "worker"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "asking.py").write_text(f"BY = {seconds}\n{_MODULE}")
    env = os.environ | {"PYTHONPATH": PYTHONPATH, "FAULTS_PLANT": f"skew={seconds}"}
    asked = subprocess.run(
        [sys.executable, "-c", _ASK], cwd=tmp_path, env=env, capture_output=True, check=True
    )

    for way, told in json.loads(asked.stdout).items():
        assert told == pytest.approx(time.time() + seconds, abs=30), way
