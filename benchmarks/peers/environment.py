"""The virtual environment of the peers, made on first use and apart from the product's."""

import subprocess
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parent.parent.parent
_FOLDER = _ROOT / ".venv-bench"


class PeerMissingError(RuntimeError):
    """A peer cannot be installed or started here."""


@cache
def peer_python() -> Path:
    """Return the interpreter that has the peers; raises PeerMissingError."""
    command = [str(_ROOT / "scripts" / "venv"), str(_FOLDER.name), "bench"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerMissingError(f"no environment for the peers: {done.stderr[-500:]}")
    return _FOLDER / "bin" / "python"
