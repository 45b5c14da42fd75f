"""Rows 31 and 32: more than the server bears, from everybody or from one user."""

import time

import pytest

from tests.faults.conftest import Case
from tests.faults.flood import flood_with, quantile
from tests.faults.probe import Probe
from tests.faults.rig import Rig
from tests.faults.torrent import Torrent, pour
from tests.faults.trial import Trial, resident

_NOISE_MS = 50.0
#: Calls leave when they are due; the first and the last take a moment longer.
_FULL = 0.95


@pytest.mark.row(31, "overload")
@pytest.mark.timeout(900)
def test_overload(trial: Trial, rig: Rig, case: Case) -> None:
    """What is refused costs nothing: the goodput stays, refusals are quick, health is fine.

    The line to the database is made slow and the groups small, so that these two cores can offer
    several times the capacity.
    """
    limits = {"INGEST_GROUP_ROWS": "50", "INGEST_WAITING_ROWS": "1000"}
    with rig.changed(rig.server, **limits):
        line = rig.server_lines[0].database
        line.latency = 0.01
        noisy = Trial(rig, seed=1)
        # As many calls at a time as keep both writers busy, and none is refused.
        full = Torrent.of(pour(noisy, rig.ports[0], rate=1_000, seconds=3, events=50, most_open=16))
        capacity = 50 * full.in_time / 3
        alone = quantile(flood_with(trial, callers=1, seconds=1).answered, 0.5)
        memory = resident(rig.server.pids())
        with Probe(rig.target()) as probe:
            began = time.monotonic()
            seconds = case.count(5, 300)
            calls = 3.5 * capacity / 50
            torrent = Torrent.of(pour(noisy, rig.ports[0], rate=calls, seconds=seconds, events=50))
            ended = time.monotonic()
            grown = resident(rig.server.pids()) - memory
            back = _calm_again(trial, alone) - ended + torrent.drain_seconds
        line.latency = 0
        trial.load()
        time.sleep(1)
        trial.verdict()
        noisy.verdict_keyless(50 * (full.taken + torrent.taken))

    goodput, offered = (50 * calls / seconds for calls in (torrent.in_time, torrent.calls))
    slow, late = quantile(torrent.refused, 0.99), quantile(torrent.late, 0.99)
    case.note(
        f"capacity {capacity:.0f}/s, offered {offered / capacity:.1f} times as much, goodput"
        f" {goodput:.0f}/s with {len(torrent.refused)} refusals, p99 {slow:.0f} ms from a client"
        f" that is itself late by {late:.0f} ms; health {probe.milliseconds(began, ended):.0f} ms;"
        f" {grown / 1e6:+.1f} MB; as before after {back:.1f} s"
    )
    assert offered >= 3 * capacity
    assert goodput >= 0.8 * capacity
    assert not full.refused
    assert torrent.refused
    assert torrent.odd == 0
    assert slow <= 100 + late
    assert probe.answers(began, ended) == {"SERVING"}
    assert grown <= 50e6
    assert back <= 10


def _calm_again(trial: Trial, alone: float) -> float:
    """Return when one caller is answered as quickly as it was before, or give up."""
    for _ in range(30):
        began = time.monotonic()
        flood = flood_with(trial, callers=1, seconds=0.5)
        median = quantile(flood.answered, 0.5)
        if flood.answered and not flood.refused and median <= 2 * alone + _NOISE_MS:
            return began
    return float("inf")


@pytest.mark.row(32, "a noisy user")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("share", [0, 60], ids=["no-limit", "limit"])
def test_a_noisy_user(trial: Trial, rig: Rig, case: Case, share: int) -> None:
    """Twenty times as much by one token leaves another user's p99 within twice its own.

    With a limit it gets its share, and is told to wait with every refusal; it does not wait.
    """
    rate, seconds = 30.0, case.count(6, 60)
    with rig.changed(rig.server, INGEST_USER_EVENTS_PER_SECOND=str(share)):
        noisy = Trial(rig, seed=1)
        load = trial.load(streams=0, batches=0, pollers=0, unary=1, unary_rate=rate)
        time.sleep(2)
        calm = time.monotonic()
        time.sleep(seconds)
        began = time.monotonic()
        torrent = Torrent.of(pour(noisy, rig.ports[0], rate=20 * rate, seconds=seconds))
        ended = time.monotonic()
        history = trial.verdict()
        noisy.verdict_keyless(torrent.taken)

    before, during = trial.unary_ms(calm, began), trial.steady_ms(load, began, ended)
    quiet = len(history.facts("ok", after=began, before=ended)) / (ended - began)
    offered = torrent.calls / seconds
    case.note(
        f"{offered / quiet:.0f} times as much, {torrent.taken / seconds:.0f}/s of it taken; p99"
        f" {before:.0f} ms alone, {during:.0f} ms beside it; its client took"
        f" {torrent.cpu_seconds / seconds:.0%} of a core"
    )
    assert offered >= 20 * quiet * _FULL
    assert torrent.odd == 0
    assert torrent.taken <= share * (seconds + 3) if share else not torrent.refused
    assert not history.facts("unknown")
    assert during <= max(2 * before, before + _NOISE_MS)
