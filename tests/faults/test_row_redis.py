"""Rows 8 to 15: the broker loses everything, stalls, fills up, lies, or is not there at all."""

import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import redis

from tests.faults.conftest import Case
from tests.faults.garbage import garbage
from tests.faults.ledger import query
from tests.faults.probe import Probe
from tests.faults.rig import Rig
from tests.faults.trial import Trial, counts
from tests.faults.verdict import BROKER_LINES
from tests.kit.processes import has_ended
from tests.kit.waiting import eventually

#: A p99 of some hundred calls on a shared machine; less than this says nothing.
_NOISE_MS = 50.0
#: Events that a flush takes at least, of the some seventy that come while the workers stand still.
_FORGOTTEN = 10


@pytest.mark.row(8, "Redis FLUSHALL again and again")
@pytest.mark.timeout(200)
def test_flushed_queues(trial: Trial, rig: Rig, case: Case) -> None:
    """No call fails or is slower, and the sweeper finds what the queue forgot.

    The workers stand still meanwhile, so that there is something to forget.
    """
    load = trial.load()
    time.sleep(2)
    began = time.monotonic()
    for _ in range(case.count(3, 12)):
        for worker in rig.workers:
            worker.signal_all(signal.SIGSTOP)
        time.sleep(0.3)  # so much load that nobody takes gathers in the queue
        _client(rig).flushall()
        for worker in rig.workers:
            worker.signal_all(signal.SIGCONT)
        time.sleep(case.count(1, 5))
    ended = time.monotonic()
    load.stop()
    lag = trial.settle(10)
    trial.verdict()
    _still_fast(trial, case, began, ended, factor=1.5)
    swept = sum(int(str(line["count"])) for line in trial.logs.lines("event_redispatched"))

    case.note(f"{swept} events swept; all final {lag:.1f} s after the load")
    assert swept >= _FORGOTTEN * case.count(3, 12)


@pytest.mark.row(9, "Redis killed, back empty")
def test_redis_comes_back_empty(trial: Trial, rig: Rig, case: Case) -> None:
    """As a flush, with a second of refused connections."""
    load = trial.load()
    time.sleep(2)
    began = time.monotonic()
    rig.redis.kill()
    time.sleep(1)
    rig.redis.start()
    time.sleep(2)
    ended = time.monotonic()
    load.stop()
    lag = trial.settle(10)
    trial.verdict(allowed=BROKER_LINES)
    _still_fast(trial, case, began, ended, factor=1.5)

    case.note(f"all final {lag:.1f} s after the load")


@pytest.mark.row(10, "Redis down")
@pytest.mark.timeout(500)
def test_work_goes_on_without_redis(trial: Trial, rig: Rig, case: Case) -> None:
    """Submits stay OK and quick, and the sweepers process what nobody announces."""
    trial.load()
    time.sleep(2)
    began = time.monotonic()
    rig.redis.kill()
    time.sleep(case.count(5, 300))  # the fault lasts so long
    ended, oldest = time.monotonic(), _oldest_open(rig)
    rig.redis.start()
    trial.verdict(allowed=BROKER_LINES)
    _still_fast(trial, case, began, ended)

    case.note(f"oldest open row {oldest:.1f} s")
    assert oldest <= case.count(4, 8)


@pytest.mark.row(11, "Redis stalls")
def test_a_stalled_redis_is_left_alone(trial: Trial, rig: Rig, case: Case) -> None:
    """The breaker opens at once; neither calls nor the event loop nor threads notice."""
    trial.load()
    with Probe(rig.target()) as probe:
        time.sleep(2)
        threads = counts(rig.server.pids())[2]
        began = time.monotonic()
        for line in (*rig.server_lines, *rig.worker_lines):
            line.broker.stall()
        eventually(lambda: _told(trial, "broker_unavailable"), timeout=1)
        opened = time.monotonic() - began
        time.sleep(case.count(4, 30))
        ended = time.monotonic()
        more_threads = counts(rig.server.pids())[2] - threads
    for line in (*rig.server_lines, *rig.worker_lines):
        line.broker.resume()
    trial.verdict(allowed=BROKER_LINES)
    _still_fast(trial, case, began, ended)

    cost = trial.unary_ms(began, ended, share=1) - trial.unary_ms(before=began)
    case.note(f"the slowest submit took {cost:+.0f} ms")
    assert cost <= 250
    calm = probe.milliseconds(0, began)
    stalled = probe.milliseconds(began, ended)
    # Before the breaker opens one call waits for 250 ms; on the event loop, health would as well.
    slowest = max(ms for at, _, ms in probe.seen if began <= at < ended)
    case.note(
        f"breaker after {opened:.1f} s; health p90 {calm:.0f} ms, then {stalled:.0f} ms,"
        f" slowest {slowest:.0f} ms"
    )
    assert stalled <= calm + _NOISE_MS
    assert slowest <= 2 * _NOISE_MS
    assert more_threads <= 2


@pytest.mark.row(12, "Redis full, noeviction")
def test_a_full_redis(trial: Trial, rig: Rig, case: Case) -> None:
    """As one that is down, and without a flood of log lines."""
    trial.load()
    time.sleep(2)
    client = _client(rig)
    client.set("junk", b"x" * (4 << 20))
    client.config_set("maxmemory", 4 << 20)  # less than is used: every write is refused
    began, lines = time.monotonic(), _noise(trial)
    time.sleep(case.count(5, 60))
    written, ended, oldest = _noise(trial) - lines, time.monotonic(), _oldest_open(rig)
    client.flushall()
    client.config_set("maxmemory", 0)
    trial.verdict(allowed=BROKER_LINES)
    _still_fast(trial, case, began, ended)

    noise = Counter(str(line["process"]) for line in trial.logs.lines("broker_unavailable"))
    case.note(
        f"{written} lines beside work in {ended - began:.0f} s; {dict(noise)};"
        f" oldest open row {oldest:.1f} s"
    )
    assert oldest <= case.count(4, 8)
    assert noise, "nobody told that Redis takes nothing"
    assert all(count <= (ended - began) + 5 for count in noise.values())
    assert written <= len(rig.used) * (ended - began + 5)


@pytest.mark.row(13, "Redis loses one reply in ten")
def test_lost_replies(trial: Trial, rig: Rig, case: Case) -> None:
    """Fetches, acknowledgements and enqueues alike; what is stuck is sent again."""
    lines = [line.broker for line in (*rig.server_lines, *rig.worker_lines)]
    for proxy in lines:
        proxy.lost_replies = 0.1
    load = trial.load()
    time.sleep(case.count(6, 60))
    load.stop()
    for proxy in lines:
        proxy.lost_replies = 0
    drained = trial.settle()
    trial.verdict(allowed=BROKER_LINES)

    case.note(f"drained in {drained:.1f} s")
    assert drained <= 30


@pytest.mark.beside_others
@pytest.mark.row(14, "actor fails while Redis is down")
def test_failures_without_a_broker(trial: Trial, rig: Rig, case: Case, tmp_path: Path) -> None:
    """The row keeps the count: one attempt for each failure, one for the success."""
    switch = tmp_path / "go"
    tmp_path.chmod(0o755)
    trial.load()
    time.sleep(1)
    ids = []
    for number in range(10):
        ids.append(trial.submit({"fault": "until", "file": str(switch)}))
        if number == 5:
            rig.redis.kill()

    def failed() -> Counter[object]:
        return Counter(line["event_id"] for line in trial.logs.lines("event_postponed"))

    eventually(lambda: set(ids) <= failed().keys(), timeout=30)
    switch.touch()
    time.sleep(1)
    rig.redis.start()
    trial.verdict(allowed=BROKER_LINES)
    failures = failed()
    rows = query(
        rig.url, "SELECT id::text, status, attempts FROM events WHERE id = ANY (%s::uuid[])", ids
    )

    case.note(f"{sum(failures.values())} failures of 10 events")
    assert {row[0]: (row[1], row[2]) for row in rows} == {
        event_id: (2, failures[event_id] + 1) for event_id in ids
    }


@pytest.mark.beside_others
@pytest.mark.row(15, "garbage in the queue")
def test_foreign_messages(trial: Trial, rig: Rig, case: Case, tmp_path: Path) -> None:
    """Nothing of it executes or keeps good messages from their end; the log counts it."""
    trap = tmp_path / "executed"
    load = trial.load()
    time.sleep(1)
    client = _client(rig)
    foreign = list(garbage(trap))
    for number, body in enumerate(foreign):
        name = f"garbage-{number}-{trial.subject}"
        for queue in ("ingest", "ingest-recovery"):
            client.hset(f"dramatiq:{queue}.msgs", name, body)
            client.rpush(f"dramatiq:{queue}", name)
    client.rpush("dramatiq:ingest", "no-such-message", b"\xff\xfe", "")
    time.sleep(3)
    load.stop()
    drained = trial.settle()
    trial.verdict()
    lines = trial.logs.lines("message_dropped")
    dropped = sum(int(str(line.get("count", 1))) for line in lines)

    case.note(f"drained in {drained:.1f} s; {dropped} dropped, by {len(lines)} lines of the log")
    assert dropped == 2 * len(foreign)
    assert drained <= 30
    assert not trap.exists()
    assert not any(has_ended(pid) for worker in rig.workers for pid in worker.pids())


def _client(rig: Rig) -> "redis.Redis":
    return redis.Redis.from_url(rig.redis.url)


def _oldest_open(rig: Rig) -> float:
    """Return for how many seconds the oldest event waits; for as long as the fault, if all do."""
    seconds = "SELECT coalesce(max(extract(epoch FROM now() - received_at)), 0)::float"
    return float(query(rig.url, seconds + " FROM events WHERE status = 1")[0][0])


def _noise(trial: Trial) -> int:
    """How many lines were written that are not about work done, by all processes."""
    names = ("event_processed", "event_redispatched", "stream_accepted")
    work = [trial.logs.lines(name) for name in names]
    return trial.logs.count() - sum(map(len, work))


def _told(trial: Trial, event: str) -> bool:
    return bool(trial.logs.lines(event))


def _still_fast(
    trial: Trial, case: Case, began: float, ended: float, *, factor: float = 1.0
) -> None:
    """No call failed between the two times, and the p99 of submits stayed; after the load."""
    before = trial.unary_ms(before=began)
    during = trial.steady_ms(trial.loads[0], began, ended)
    case.note(f"submit p99 {before:.0f} ms, then {during:.0f} ms")
    unknown = trial.history().facts("unknown", after=began, before=ended)
    assert not unknown, unknown.entries[0]
    assert during <= max(before * factor, before + _NOISE_MS)
