"""Checks the pinned requirements without any network.

Every requirement that pyproject.toml states must be pinned to a release it allows, and no file may
say which registry that comes from.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", re.MULTILINE)

#: Older releases have known vulnerabilities or lose messages, whatever pyproject.toml may say.
FLOORS = ("pyjwt>=2.15.1", "grpcio>=1.85", "dramatiq>=2.2.1", "protobuf>=6.33.5")

#: Installed from this repository.
LOCAL = {"ingest-client", "ingest-service"}


def pins(name: str) -> dict[str, str]:
    """Return the pinned versions of requirements/NAME.txt by distribution."""
    text = Path(f"requirements/{name}.txt").read_text()
    return {
        canonicalize_name(distribution): version for distribution, version in PINNED.findall(text)
    }


def stated() -> Iterator[tuple[str, str]]:
    """Yield each file of pins with each requirement that it has to satisfy."""
    service = tomllib.loads(Path("pyproject.toml").read_text())
    client = tomllib.loads(Path("clients/python/pyproject.toml").read_text())["project"]
    runtime = [
        *service["project"]["dependencies"],
        *client["dependencies"],
        *client["optional-dependencies"]["cli"],
        *FLOORS,
    ]
    for requirement in runtime:
        yield "run", requirement
        yield "dev", requirement
    for requirement in service["dependency-groups"]["dev"]:
        yield "dev", requirement


def problems() -> Iterator[str]:
    """Yield a line for everything that is wrong."""
    pinned = {name: pins(name) for name in ("run", "dev")}
    for name, text in stated():
        requirement = Requirement(text)
        distribution = canonicalize_name(requirement.name)
        version = pinned[name].get(distribution)
        if distribution in LOCAL:
            continue
        if version is None:
            yield f"requirements/{name}.txt does not pin {text}"
        elif version not in requirement.specifier:
            yield f"requirements/{name}.txt pins {distribution} {version}, which is not {text}"
    for pin in pinned["run"].items() - pinned["dev"].items():
        yield f"requirements/run.txt pins {'=='.join(pin)}, which dev.txt does not"
    for path in sorted(Path("requirements").iterdir()):
        if "://" in path.read_text():
            yield f"{path} names a host"


if __name__ == "__main__":
    found = list(problems())
    sys.exit("\n".join(found) + "\nrun 'make lock' and commit the result" if found else 0)
