"""The bill of materials: valid CycloneDX, complete, and the same every time."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def make() -> str:
    """Run the program, and return what it wrote."""
    subprocess.run([sys.executable, "scripts/sbom.py"], cwd=ROOT, check=True, capture_output=True)
    return (ROOT / "build" / "sbom.cdx.json").read_text()


@pytest.fixture(scope="module")
def written() -> str:
    return make()


@pytest.fixture
def sbom(written: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(written)
    return made


def test_it_is_valid_and_reproducible(written: str) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(written) is None
    assert make() == written


def test_every_pin_that_is_installed_is_in_it_with_its_hashes(sbom: dict[str, Any]) -> None:
    lock = (ROOT / "requirements" / "run.txt").read_text()
    pinned = {
        canonicalize_name(line.split("==")[0])
        for line in lock.splitlines()
        if "==" in line and not line.startswith((" ", "#"))
    }
    components = {found["name"]: found for found in sbom["components"]}

    assert components.keys() == pinned | {"ingest-client"}
    hashes = [
        found["content"]
        for name in pinned
        for reference in components[name]["externalReferences"]
        for found in reference["hashes"]
    ]
    assert len(hashes) == lock.count("--hash=sha256:")
    assert all(f"--hash=sha256:{content}" in lock for content in hashes)


def test_what_needs_what_leads_from_the_service_to_everything(sbom: dict[str, Any]) -> None:
    needs = {entry["ref"]: entry["dependsOn"] for entry in sbom["dependencies"]}
    reached, waiting = set(), ["ingest-service"]
    while waiting:
        ref = waiting.pop()
        if ref not in reached:
            reached.add(ref)
            waiting += needs[ref]

    assert reached == needs.keys()
    assert all(found.get("licenses") for found in sbom["components"] if found["bom-ref"] in needs)
