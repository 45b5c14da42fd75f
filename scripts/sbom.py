"""Writes build/sbom.cdx.json: what the service is made of, as CycloneDX 1.6.

Taken from the lock file, with the hashes that are installed by, and from the metadata of what is
installed here (`make install-dev`), for licences and dependencies. The same inputs give the same
bytes. Fails when a pin is not installed in its pinned version, or has no hash.
"""

import json
import re
import sys
import tomllib
import uuid
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = Path("requirements/run.txt")
OUT = Path("build/sbom.cdx.json")
#: A pin and its hashes, on lines that a backslash continues.
PIN = re.compile(
    r"^([A-Za-z0-9._-]+)==([^ ;\\]+)(?: ; ([^\\\n]+?))?((?: *\\\n +--hash=\S+)+)", re.MULTILINE
)
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
OURS = ("ingest-service", "ingest-client")


class Pin(NamedTuple):
    """One line of the lock file."""

    name: str
    version: str
    marker: str
    hashes: list[str]

    @property
    def purl(self) -> str:
        """The package URL, which is also its reference in the document."""
        return f"pkg:pypi/{self.name}@{self.version}"

    @property
    def is_for_here(self) -> bool:
        """Whether it is installed on this machine."""
        return not self.marker or Marker(self.marker).evaluate()


def pins(lock: str) -> list[Pin]:
    """Return what a lock file pins; raises ValueError for a pin without a hash."""
    found = [
        Pin(canonicalize_name(name), version, marker, HASH.findall(hashes))
        for name, version, marker, hashes in PIN.findall(lock)
    ]
    if len(found) != len(re.findall(r"^[A-Za-z0-9._-]+==", lock, re.MULTILINE)):
        raise ValueError(f"{LOCK}: a pin has no hash")
    return found


def component(pin: Pin) -> dict[str, Any]:
    """Return the component of a pin."""
    made: dict[str, Any] = {
        "type": "library",
        "bom-ref": pin.purl,
        "name": pin.name,
        "version": pin.version,
        "purl": pin.purl,
        # Of the files that may be installed; which one it is depends on the machine.
        "externalReferences": [
            {
                "type": "distribution",
                "url": f"https://pypi.org/project/{pin.name}/{pin.version}/",
                "hashes": [{"alg": "SHA-256", "content": content} for content in pin.hashes],
            }
        ],
    }
    if pin.marker:
        made["properties"] = [{"name": "ingest:marker", "value": pin.marker}]
    if pin.is_for_here:
        installed = distribution(pin.name)
        if installed.version != pin.version:
            raise ValueError(f"{pin.name} {installed.version} is installed, not {pin.version}")
        made["licenses"] = list(licences(installed))
    return made


def licences(installed: Distribution) -> Iterator[dict[str, Any]]:
    """Yield what a distribution says of its licence: an SPDX expression, or a few words."""
    metadata = installed.metadata.json
    if expression := metadata.get("license_expression"):
        yield {"expression": expression}
        return
    words = str(metadata.get("license") or "").strip()
    classifiers = metadata.get("classifier") or []
    names = [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License ::")]
    if words and "\n" not in words:
        names = [words]
    yield from ({"license": {"name": name}} for name in names)


def needs(name: str, known: dict[str, str]) -> list[str]:
    """Return the references of what a distribution needs on this machine."""
    required = (Requirement(text) for text in distribution(name).requires or [])
    extras = ("", "redis", "rabbitmq", "cli")
    found = {
        known[canonicalize_name(requirement.name)]
        for requirement in required
        if canonicalize_name(requirement.name) in known
        and (
            requirement.marker is None
            or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)
        )
    }
    return sorted(found)


def document(lock: str) -> dict[str, Any]:
    """Return the whole document."""
    found = pins(lock)
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    client = tomllib.loads(Path("clients/python/pyproject.toml").read_text())["project"]
    ours = [
        {
            "type": "application" if made is project else "library",
            "bom-ref": made["name"],
            "name": made["name"],
            "version": made["version"],
            "description": made["description"],
            "licenses": [{"license": {"id": made["license"]}}],
        }
        for made in (project, client)
    ]
    known = {pin.name: pin.purl for pin in found} | {name: name for name in OURS}
    here = [pin for pin in found if pin.is_for_here]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, lock)}",
        "version": 1,
        "metadata": {"lifecycles": [{"phase": "build"}], "component": ours[0]},
        "components": [ours[1], *map(component, found)],
        "dependencies": [
            *({"ref": name, "dependsOn": needs(name, known)} for name in OURS),
            *({"ref": pin.purl, "dependsOn": needs(pin.name, known)} for pin in here),
        ],
    }


def main() -> str | None:
    """Write the document; return what is wrong."""
    try:
        made = document(LOCK.read_text())
    except (ValueError, PackageNotFoundError) as error:
        return f"sbom: {error}; run 'make install-dev'"
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(made, indent=2) + "\n")
    print(f"{OUT}: {len(made['components']) + 1} components")
    return None


if __name__ == "__main__":
    sys.exit(main())
