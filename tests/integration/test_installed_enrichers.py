"""A real worker with an enricher that is installed beside it, as an operator installs one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.v1 import event_pb2
from tests.kit.caller import Caller, event
from tests.kit.processes import Processes
from tests.kit.server import BIN, Start, settings_for
from tests.kit.waiting import eventually

#: The payload names what to raise, or how much to return.
ENRICHER = """
import asyncio
import builtins


class PanicException(BaseException):
    pass


KINDS = {"CancelledError": asyncio.CancelledError, "PanicException": PanicException}


def enrich(payload):
    if "raise" in payload:
        name = payload["raise"]
        raise (KINDS.get(name) or getattr(builtins, name))
    return {"added": "x" * payload.get("add", 0)}
"""
KINDS = (
    "SystemExit",
    "KeyboardInterrupt",
    "GeneratorExit",
    "CancelledError",
    "PanicException",
    "StopIteration",
    "LookupError",
)
#: Long enough for a machine that is busy, and less than a lease.
PROMPTLY = 12.0


def install(folder: Path) -> str:
    """Make the enricher importable as a distribution with its entry point; return the folder."""
    info = folder / "odd-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "odd_enricher.py").write_text(ENRICHER)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ingest.enrichers]\nodd = odd_enricher:enrich\n")
    return str(folder)


@pytest.fixture
def start_odd(
    store_url: str, broker_url: str, start_service: Start, processes: Processes, tmp_path: Path
) -> Callable[[], tuple[Caller, Callable[[], str]]]:
    """Start a server and a worker with the enricher; return a caller and the worker's log."""

    def start() -> tuple[Caller, Callable[[], str]]:
        env = settings_for(
            store_url,
            broker_url,
            SWEEP_SECONDS="0.2",
            # Nothing is swept before its first delivery, however busy the machine is.
            DISPATCH_GRACE_SECONDS="60",
            MAX_ATTEMPTS="2",
            LOG_LEVEL="INFO",
        )
        worker = processes.start(
            BIN / "ingest-service",
            "worker",
            env=env | {"PYTHONPATH": install(tmp_path / "odd")},
            ready=lambda started: '"event": "worker_started"' in started.stderr(),
        )
        return start_service(env).caller(), worker.stderr

    return start


def test_events_beside_those_whose_enricher_raises_anything_are_processed_promptly(
    start_odd: Callable[[], tuple[Caller, Callable[[], str]]],
) -> None:
    alice, log = start_odd()
    good = [event("good", payload={"n": n}) for n in range(300)]
    bad = [event("bad", payload={"raise": name}) for name in KINDS]
    mixed = [one for k, name in enumerate(bad) for one in [*good[k * 40 : k * 40 + 40], name]]
    mixed += good[len(bad) * 40 :]

    receipts = alice.stream([mixed]).receipts

    eventually(lambda: alice.counts().get("PROCESSED") == len(good), timeout=PROMPTLY)
    eventually(lambda: alice.counts() == {"PROCESSED": 300, "FAILED": len(KINDS)}, timeout=20)
    found = [alice.get(one.event_id) for one in receipts]
    assert {one.attempts for one in found if one.type == "good"} == {0}
    reasons = [one.processing_error for one in found if one.type == "bad"]
    assert reasons == [f"processing failed: {name}" for name in KINDS]
    assert '"level": "error"' not in log()


def test_an_enricher_that_adds_too_much_fails_its_event_and_every_page_can_be_read(
    start_odd: Callable[[], tuple[Caller, Callable[[], str]]],
) -> None:
    alice, _ = start_odd()
    sizes = [0, 10_000_000, 1_000_000, 2_000_000, 0]

    receipts = alice.stream([[event(payload={"add": size}) for size in sizes]]).receipts

    eventually(lambda: alice.counts() == {"PROCESSED": 3, "FAILED": 2}, timeout=20)
    found = [alice.get(one.event_id) for one in receipts]
    assert [one.status == event_pb2.EVENT_STATUS_FAILED for one in found] == [
        size > 1_100_000 for size in sizes
    ]
    assert found[1].processing_error.startswith("the result cannot be stored: ")
    assert sum(len(page.events) for page in alice.pages()) == len(sizes)
