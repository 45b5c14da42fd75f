"""The events that are sent: small, 1.5 kB, and real GitHub webhooks; always the same ones."""

import json
import random
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ingest.v1.event_pb2 import EventInput

_SEED = 20_240_229
_PACKAGE = "@octokit/webhooks-examples@7.6.1"
_VENDORED = Path(__file__).parent.parent / "examples" / "github_webhooks.jsonl"
#: Different events of the made corpora; they are repeated as often as needed.
_VARIETY = 1_000
_PAGES = ("/", "/pricing", "/docs/start", "/blog/2024/spring", "/account/settings")
_WORDS = [
    "alpha",
    "bravo",
    "charlie",
    "delta",
    "echo",
    "foxtrot",
    "golf",
    "hotel",
    "india",
    "juliett",
    "kilo",
    "lima",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Some events, with a note on where they come from."""

    name: str
    events: list[EventInput]
    origin: str

    def cycle(self, count: int) -> Iterator[EventInput]:
        """Yield `count` events, beginning again when the corpus ends."""
        for index in range(count):
            yield self.events[index % len(self.events)]

    @property
    def mean_payload_bytes(self) -> float:
        """Bytes of an average payload."""
        return sum(len(event.payload_json) for event in self.events) / len(self.events)


@cache
def corpus(name: str) -> Corpus:
    """Return the corpus `small` (about 100 bytes), `medium` (1.5 kB) or `github`."""
    if name == "github":
        return _github()
    choose = random.Random(_SEED)  # noqa: S311  # the same events each time
    make = {"small": _small_payload, "medium": _medium_payload}[name]
    events = [
        EventInput(type="page.viewed", source="web", payload_json=_compact(make(choose)))
        for _ in range(_VARIETY)
    ]
    return Corpus(name=name, events=events, origin=f"made, seed {_SEED}")


def _small_payload(choose: random.Random) -> dict[str, Any]:
    return {
        "page": choose.choice(_PAGES),
        "duration": round(choose.uniform(0.1, 300), 2),
        "scroll_depth": choose.randrange(101),
        "referrer": f"https://example.org/{choose.randrange(10**6)}",
    }


def _medium_payload(choose: random.Random) -> dict[str, Any]:
    items = [
        {
            "sku": f"{choose.choice(_WORDS)}-{choose.randrange(10**8):08}",
            "title": " ".join(choose.choices(_WORDS, k=8)),
            "price": round(choose.uniform(1, 500), 2),
            "tags": choose.sample(_WORDS, 3),
        }
        for _ in range(9)
    ]
    return {**_small_payload(choose), "cart": items, "experiment": choose.choices(_WORDS, k=12)}


def _github() -> Corpus:
    try:
        payloads, origin = _github_package(), f"npm {_PACKAGE}"
    except (OSError, subprocess.SubprocessError) as error:
        print(
            f"! npm package not available ({type(error).__name__}): vendored sample instead",
            file=sys.stderr,
        )
        lines = _VENDORED.read_text().splitlines()
        payloads = [(event["type"], event["payload"]) for event in map(json.loads, lines)]
        origin = f"examples/{_VENDORED.name}, one payload of each type"
    events = [
        EventInput(type=kind, source="github", payload_json=_compact(payload))
        for kind, payload in payloads
    ]
    random.Random(_SEED).shuffle(events)  # noqa: S311  # the same order each time
    return Corpus(name="github", events=events, origin=f"{origin}: {len(events)} payloads")


def _github_package() -> list[tuple[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", _PACKAGE]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
        (package,) = Path(folder).glob("*.tgz")
        with tarfile.open(package) as archive:
            member = archive.extractfile("package/api.github.com/index.json")
            webhooks = json.load(member) if member else []
    return [
        (f"github.{webhook['name']}", payload)
        for webhook in webhooks
        for payload in webhook["examples"]
    ]


def _compact(payload: Any) -> str:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
