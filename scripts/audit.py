"""Asks the advisory database about the pinned requirements, with pip-audit.

A known vulnerability fails. A database that cannot be reached, or that does not know a package,
does not: then what was left out is said loudly, and check_requirements.py is all there is.
"""

import json
import subprocess
import sys
from typing import Any

#: dev holds run and build. The short file comes first: no answer to it ends the matter.
FILES = ("generate", "dev")
#: Seconds for one file; a service that hangs must not hold up the checks.
PATIENCE = 120


def ask(name: str) -> list[dict[str, Any]]:
    """Return what is said about each pin of requirements/NAME.txt; nothing when nobody answers."""
    command = [sys.executable, "-m", "pip_audit", "--progress-spinner=off", "--format=json"]
    command += ["--require-hashes", "--disable-pip", f"--requirement=requirements/{name}.txt"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        answers: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return []
    return answers


def main() -> int:
    """Print what was found and what was left out; return 1 for a known vulnerability."""
    vulnerable = False
    for name in FILES:
        answers = ask(name)
        for answer in answers:
            for advisory in answer.get("vulns", []):
                vulnerable = True
                fixed = ", ".join(advisory["fix_versions"]) or "no release yet"
                print(f"{name}: {answer['name']}: {advisory['id']}, fixed in {fixed}")
        unknown = [answer["name"] for answer in answers if "vulns" not in answer]
        if len(unknown) == len(answers):
            print("LEFT OUT: the advisory database cannot be reached; only the floors were checked")
            break
        if unknown:
            print(f"LEFT OUT: the advisory database knows nothing of {', '.join(unknown)} ({name})")
        print(f"{name}: {len(answers) - len(unknown)} pins asked about")
    return int(vulnerable)


if __name__ == "__main__":
    sys.exit(main())
