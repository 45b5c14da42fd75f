"""Rebuild examples/github_webhooks.jsonl: one real GitHub webhook payload for each event type.

The payloads are the first example of each type in the npm package @octokit/webhooks-examples
(MIT, see NOTICE), unchanged. From this folder:

    npm pack @octokit/webhooks-examples@7.6.1
    python make_github_webhooks.py octokit-webhooks-examples-7.6.1.tgz > github_webhooks.jsonl
"""

# ruff: noqa: INP001  # a program, not a package

import json
import sys
import tarfile
from collections.abc import Iterator
from typing import IO, cast

WEBHOOKS = "package/api.github.com/index.json"


def event_lines(package: str) -> Iterator[str]:
    """Yield one line of JSON for each event type found in the package, a .tgz file.

    Numbers survive because every one of them is an integer or a short decimal, which Python
    writes back as it read it.
    """
    with tarfile.open(package) as archive:
        member = cast("IO[bytes]", archive.extractfile(WEBHOOKS))
        webhooks = json.load(member)
    for webhook in webhooks:
        event = {
            "type": f"github.{webhook['name']}",
            "source": "github",
            "idempotency_key": f"octokit-webhooks-examples-7.6.1/{webhook['name']}",
            "payload": webhook["examples"][0],
        }
        yield json.dumps(event, ensure_ascii=False, separators=(",", ":"))


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # a TextIOWrapper here
    for line in event_lines(sys.argv[1]):
        sys.stdout.write(line + "\n")
