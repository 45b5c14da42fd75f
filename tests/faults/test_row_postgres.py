"""Rows 16 to 20: the database restarts, is away, lies, stalls, or is slow."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

import grpc
import pytest

from ingest.v1.ingest_service_pb2 import (
    GetEventRequest,
    SubmitEventRequest,
)
from tests.faults.conftest import Case
from tests.faults.flood import quantile
from tests.faults.links import link_to
from tests.faults.load import BROKEN, make_event
from tests.faults.probe import Probe
from tests.faults.rig import Rig
from tests.faults.torrent import Torrent, pour
from tests.faults.trial import Trial, resident
from tests.kit.proxy import Point
from tests.kit.waiting import eventually

COMMIT = b"COMMIT\x00"
COPY = b"COPY events"
#: A few events and their keys, in a statement that commits itself; a batch has a transaction.
ALONE = b"EXECUTE ingest_keyed"


@pytest.mark.row(16, "PostgreSQL restarts at once (immediate)")
@pytest.mark.timeout(500)
def test_an_immediate_restart(trial: Trial, rig: Rig, case: Case) -> None:
    """No OK while it is down, the first one soon after, and no connection stays poisoned."""
    trial.load()
    gaps = []
    for _ in range(case.count(2, 20)):
        time.sleep(case.count(1, 15))
        rig.postgres.stop("immediate")
        down = time.monotonic()
        time.sleep(1)
        up = time.monotonic()
        rig.postgres.start()
        gaps.append((down, up, time.monotonic()))
    time.sleep(3)
    history = trial.verdict()

    firsts = []
    for down, up, ready in gaps:
        # The answer to what was committed before may be read late.
        assert not history.facts("ok", op="new", before=up).begun(after=down)
        firsts.append(history.facts("ok", op="new", after=up).entries[0].at - ready)
    case.note(f"first OK {max(firsts):.1f} s after it is up")
    assert max(firsts) <= 3


@pytest.mark.row(17, "PostgreSQL down")
@pytest.mark.timeout(500)
def test_a_database_that_is_down(trial: Trial, rig: Rig, case: Case) -> None:
    """Calls end soon with UNAVAILABLE, memory stays, health tells, and it recovers alone."""
    trial.load(patience=400.0)
    with Probe(rig.target()) as probe:
        time.sleep(1.5)
        memory = resident(rig.server.pids())
        rig.postgres.stop("fast")
        down = time.monotonic()
        time.sleep(case.count(5, 300))  # the fault lasts so long
        more = resident(rig.server.pids()) - memory
        up = time.monotonic()
        rig.postgres.start()
        eventually(lambda: probe.seen[-1][1] == "SERVING", timeout=5)
    history = trial.verdict()

    unknown = history.facts("unknown", after=down + 0.5, before=up)
    slowest = max(entry.ms for entry in unknown.entries if entry.writer.startswith("unary"))
    case.note(f"slowest refusal {slowest:.0f} ms; memory {more / 1e6:+.0f} MB")
    assert {entry.code for entry in unknown.entries} <= BROKEN
    assert slowest <= 2_500
    assert abs(more) <= 20e6
    assert "NOT_SERVING" in probe.answers(down + 2, up)
    assert "SERVING" not in probe.answers(down + 3, up)


@pytest.mark.row(18, "connection cut at COMMIT, which took effect")
@pytest.mark.timeout(500)
def test_a_lost_reply_to_commit(trial: Trial, rig: Rig, case: Case) -> None:
    """Clients are told OK or UNAVAILABLE, and the event is there once."""
    trial.load()
    time.sleep(1)
    for _ in range(case.count(5, 200)):
        line = rig.server_lines[0].database
        for pattern, first in ((COMMIT, COPY), (ALONE, b"")):
            trap = line.trap(pattern, Point.AFTER, first=first)
            trap.wait()
            trap.cut()
            time.sleep(0.3)
    history = trial.verdict()

    again = [entry for entry in history.facts("ok", op="new").entries if entry.duplicate]
    case.note(f"{len(again)} events were committed, unanswered and answered as duplicates")
    assert again
    assert {entry.code for entry in history.facts("unknown").entries} <= BROKEN


@pytest.mark.row(19, "PostgreSQL stalls (half-open)")
@pytest.mark.timeout(300)
def test_a_half_open_database(trial: Trial, rig: Rig, case: Case) -> None:
    """Every caller is freed in time, also one without a deadline, and health answers throughout."""
    line = rig.server_lines[0].database
    _half_open(trial, rig, case, line.stall, line.resume)


@pytest.mark.row(19, "the way to PostgreSQL goes down")
@pytest.mark.timeout(300)
def test_a_lost_way_to_the_database(trial: Trial, rig: Rig, case: Case) -> None:
    """As half-open, and nobody answers whoever connects anew."""
    with link_to(case, rig.postgres.port) as link:
        url = f"postgresql://ingest@{link.target}/ingest"
        with rig.changed(rig.server, INGEST_DATABASE_URL=url):
            _half_open(trial, rig, case, link.down, link.up)


def _half_open(
    trial: Trial, rig: Rig, case: Case, lose: Callable[[], None], find: Callable[[], None]
) -> None:
    load = trial.load(attempt_timeout=12.0)
    with Probe(rig.target()) as probe:
        time.sleep(1.5)
        lose()
        stalled = time.monotonic()
        freed: dict[str, float] = {}
        callers = [
            threading.Thread(target=_call, args=(trial, name, freed), daemon=True)
            for name in ("submit", "get")
        ]
        for caller in callers:
            caller.start()
        time.sleep(case.count(8, 30))
        ended = time.monotonic()
        find()
        for caller in callers:
            caller.join(20)
        time.sleep(2)
    load.stop()
    history = trial.verdict()

    slow = max(ms for at, _, ms in probe.seen if stalled <= at < ended)
    told = probe.answers(stalled + 6, ended)
    unary = [
        entry.ms
        for entry in history.facts("unknown", after=stalled, before=ended).entries
        if entry.writer.startswith("unary")
    ]
    case.note(f"freed after {freed}; writers {max(unary):.0f} ms; health {told}, {slow:.0f} ms")
    assert slow <= 100
    assert freed.keys() == {"submit", "get"}
    assert all(seconds <= 8 for seconds in freed.values())
    assert max(unary) <= 8_000
    assert "SERVING" not in told


@pytest.mark.row(20, "slow database")
@pytest.mark.timeout(300)
def test_a_slow_database(trial: Trial, rig: Rig, case: Case) -> None:
    """200 ms each way: what is accepted is so in bounded time, and nothing piles up.

    Not counted are calls of the first three seconds, in which the server finds out how far the
    database is: those that come behind a transaction that was begun before it knew may take longer.
    """
    trial.load(unary=8)
    time.sleep(1.5)
    memory = resident(rig.server.pids())
    line = rig.server_lines[0].database
    line.latency = 0.2
    slow = time.monotonic()
    time.sleep(case.count(10, 60))
    more = resident(rig.server.pids()) - memory
    ended = time.monotonic()
    line.latency = 0
    history = trial.verdict()

    p99 = trial.unary_ms(slow + 3, ended)
    accepted = history.facts("ok", op="new", after=slow + 3, before=ended)
    case.note(f"{len(accepted)} accepted, p99 {p99:.0f} ms; memory {more / 1e6:+.0f} MB")
    assert len(accepted) >= 4 * (ended - slow - 3)
    assert p99 <= 3_000
    assert more <= 20e6


@pytest.mark.row(20, "slow database, and more than it bears")
@pytest.mark.timeout(300)
def test_a_slow_database_sheds_load(trial: Trial, rig: Rig, case: Case) -> None:
    """What is too much is refused at once, and what was taken is stored."""
    limits = {"INGEST_GROUP_ROWS": "500", "INGEST_WAITING_ROWS": "1000"}
    with rig.changed(rig.server, **limits):
        memory = resident(rig.server.pids())
        line = rig.server_lines[0].database
        line.latency = 0.2
        seconds = case.count(5, 60)
        torrent = Torrent.of(pour(trial, rig.ports[0], rate=80, seconds=seconds, events=50))
        more = resident(rig.server.pids()) - memory
        line.latency = 0
        trial.verdict_keyless(50 * torrent.taken)

    refused, late = quantile(torrent.refused, 0.99), quantile(torrent.late, 0.99)
    case.note(
        f"{len(torrent.refused)} of {torrent.calls} refused, p99 {refused:.0f} ms;"
        f" memory {more / 1e6:+.0f} MB"
    )
    assert torrent.taken
    assert torrent.refused
    assert torrent.odd == 0
    assert refused <= 100 + late
    assert more <= 50e6


def _call(trial: Trial, name: str, freed: dict[str, float]) -> None:
    """Call without a deadline of our own, and note when the server let go."""
    began = time.monotonic()
    stub = trial.stub()
    with suppress(grpc.RpcError):
        if name == "submit":
            event = make_event(f"{trial.subject}-freed")
            trial.journal.note("trial", "new", event.idempotency_key, "invoke")
            stub.SubmitEvent(SubmitEventRequest(event=event), metadata=trial.metadata, timeout=60)
        else:
            request = GetEventRequest(idempotency_key="no-such-key")
            stub.GetEvent(request, metadata=trial.metadata, timeout=60)
    freed[name] = round(time.monotonic() - began, 1)
