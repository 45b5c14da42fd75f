"""Real processes: server, broker and Dramatiq workers, and strangers in the queue."""

import json
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import dramatiq
import pytest
import redis

from tests.kit.caller import Caller, event, refused
from tests.kit.processes import Process, Processes
from tests.kit.server import BIN, Service, Start, record, records, settings_for
from tests.kit.services import Redis
from tests.kit.tokens import make_token
from tests.kit.waiting import eventually
from worker.broker import QUEUE, build_broker
from worker.dispatch import PROCESS_ACTOR, Dispatcher

FAST = {"SWEEP_SECONDS": "0.2", "DISPATCH_GRACE_SECONDS": "0.5", "LOG_LEVEL": "INFO"}


def start_worker(processes: Processes, env: dict[str, str]) -> Process:
    return processes.start(
        BIN / "ingest-service",
        "worker",
        env=env,
        ready=lambda started: record_in(started, "worker_started"),
    )


def record_in(process: Process, name: str) -> bool:
    return f'"event": "{name}"' in process.stderr()


@pytest.fixture
def pair(
    store_url: str, broker_url: str, start_service: Start, processes: Processes
) -> tuple[Service, Process]:
    """A server and a worker on one database and one Redis."""
    env = settings_for(store_url, broker_url, **FAST)
    return start_service(env), start_worker(processes, env)


def processed(caller: Caller) -> Callable[[], bool]:
    return lambda: "PENDING" not in caller.counts()


def test_events_are_processed_within_a_second_of_their_receipt(
    pair: tuple[Service, Process],
) -> None:
    alice = pair[0].caller()
    receipt = alice.submit(event(payload={"page": " /home "}))
    eventually(lambda: alice.get(receipt.event_id).processed, timeout=5)
    stored = alice.get(receipt.event_id)

    took = stored.processed_at.ToMicroseconds() - stored.received_at.ToMicroseconds()
    assert took < 1_000_000
    assert stored.attempts == 0


def test_good_and_bad_events_side_by_side_reach_their_states(pair: tuple[Service, Process]) -> None:
    alice = pair[0].caller()
    deep = '{"a":' * 11 + "1" + "}" * 11
    answer = alice.stream(
        [
            [event(payload={"n": 1}), event(payload=[1]), event(payload_json=deep)],
            [event(payload={"text": "x" * 1_100_000}), event(payload={"n": 2})],
        ]
    )
    eventually(processed(alice), timeout=15)

    stored = [alice.get(one.event_id) for one in answer.receipts]
    assert [one.status for one in stored] == [2, 3, 3, 3, 2]
    assert [one.attempts for one in stored] == [0] * 5
    assert "10 levels" in stored[2].processing_error
    assert "at most 1048576" in stored[3].processing_error


def test_after_redis_was_wiped_the_sweeper_finds_everything(
    pair: tuple[Service, Process], broker_url: str
) -> None:
    alice = pair[0].caller()
    with redis.Redis.from_url(broker_url) as client:
        for _ in range(20):
            alice.stream([[event()] * 50])
            client.flushdb()
    eventually(processed(alice), timeout=20)

    assert alice.counts() == {"PROCESSED": 1_000}


class Canary:
    """Does harm when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("__import__('pathlib').Path('/tmp/ingest-unpickled').touch()",))


def strange_messages(queue: str) -> Iterator[bytes]:
    """Yield what nobody of ours would write; everything but the last is to be dropped."""
    user, event_id = str(uuid4()), str(uuid4())
    keys = {user: [event_id]}

    def message(actor: str, *args: object, **options: object) -> bytes:
        fields = {
            "queue_name": queue,
            "kwargs": {"attempts": 0} if actor == "recover_events" else {},
            "options": {"redis_message_id": "somebody's"},
        }
        return dramatiq.Message(actor_name=actor, args=args, **(fields | options)).encode()  # type: ignore[arg-type]

    ours = "process_events" if queue == "ingest" else "recover_events"
    yield from (b"", b"garbage", b"{}", b"[]", b"null", b"\x80\x04", b"{" * 10_000)
    yield pickle.dumps(Canary())
    yield message("os.system", "true")
    yield message("process_events" if ours == "recover_events" else "recover_events", keys)
    yield message(ours)
    yield message(ours, 1, 2, 3)
    yield message(ours, keys, kwargs={"token": "x"})
    yield message(ours, keys, kwargs=[])
    yield message(ours, "x")
    yield message(ours, {user: [event_id] * 20_000})
    yield message(ours, {user: ["'; DROP TABLE events; --"]})
    for attempts in ("x", True, -1, 1 << 31, 10**30):
        yield message("recover_events", keys, kwargs={"attempts": attempts})
    # As many as would hold back, or end the threads of, all that could be worked on.
    for _ in range(40):
        yield message(ours, keys, options={"redis_message_id": "x", "eta": 1 << 60})
        yield message(ours, keys, queue_name="elsewhere")
    yield message(ours, keys, options=None)
    yield message(ours, keys, options={})
    yield message(ours, keys, options={"redis_message_id": {}})
    yield message(ours, keys, options={"redis_message_id": "x", "throws": "x"})
    yield message(ours, keys, message_id=[])
    yield message(ours, keys)


def told(worker: Process) -> list[dict[str, Any]]:
    """Return a worker's log records; Dramatiq's own program says hello in lines of another form."""
    lines = worker.stderr().rpartition("\n")[0].splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def dropped(worker: Process) -> int:
    """Return how many messages a worker says that it dropped."""
    lines = [line for line in told(worker) if line["event"] == "message_dropped"]
    return sum(line.get("count", 1) for line in lines)


def test_strangers_in_the_queue_execute_nothing_stop_nothing_and_are_counted(
    pair: tuple[Service, Process], broker_url: str
) -> None:
    alice = pair[0].caller()
    expected = 0
    with redis.Redis.from_url(broker_url) as client:
        for queue in ("ingest", "ingest-recovery"):
            strangers = list(strange_messages(queue))
            for number, message in enumerate(strangers):
                client.hset(f"dramatiq:{queue}.msgs", f"stranger-{number}", message)
                client.rpush(f"dramatiq:{queue}", f"stranger-{number}")
            expected += len(strangers) - 1
            alice.submit(event())
        client.rpush("dramatiq:ingest", "an id without a message")
        eventually(lambda: dropped(pair[1]) >= expected, timeout=30)
        for _ in range(20):
            alice.submit(event())
    eventually(processed(alice), timeout=30)

    assert dropped(pair[1]) == expected
    assert not [line for line in told(pair[1]) if line["level"] in {"error", "critical"}]
    assert pair[1].returncode is None
    assert set(alice.counts()) == {"PROCESSED"}
    assert not Path("/tmp/ingest-unpickled").exists()  # noqa: S108


def test_a_worker_starts_anew_when_told_to_and_ends_in_good_order(
    pair: tuple[Service, Process],
) -> None:
    first = pair[1].stderr().count("worker_started")
    pair[1].send_signal(signal.SIGHUP)
    eventually(lambda: pair[1].stderr().count("worker_started") == 2 * first, timeout=20)
    alice = pair[0].caller()
    alice.stream([[event()] * 500] * 4)
    # As Ctrl-C and systemd do: each process is told by it, and by the master once more.
    os.killpg(pair[1].pid, signal.SIGTERM)

    assert pair[1].wait(20) == 0
    assert "Traceback" not in pair[1].stderr()
    assert "Killing" not in pair[1].stderr()


def test_no_secret_and_no_payload_reaches_a_log(
    database_url: str, broker_url: str, start_service: Start, processes: Processes
) -> None:
    """At the most talkative level; every line is one JSON record, whatever clients send."""
    env = settings_for(database_url, broker_url, **FAST | {"LOG_LEVEL": "DEBUG"})
    env["INGEST_JWT_SECRET"] = "canary-secret-" + "x" * 40
    server, worker = start_service(env), start_worker(processes, env)
    token = make_token("alice", key=env["INGEST_JWT_SECRET"])
    alice = Caller(server.channel, token)
    forged = 'type\n{"event": "forged"}\x1b[31m'
    alice.stream(
        [[event(payload={"p": "canary-payload"}), event("a", attributes={"a": "canary-payload"})]]
    )
    alice.stream([[event(forged)], [event(payload_json='{"canary-payload": 1e999}')]])
    alice.submit(event(payload=["canary-payload"]))
    for bad in ("canary-token.x.y", token + "x"):
        assert refused(Caller(server.channel, bad).submit, event()).reason == "TOKEN_INVALID"
    eventually(processed(alice), timeout=10)
    assert server.stop() == 0
    worker.terminate()
    worker.wait()

    assert len(records(server.process)) > 5
    for process in (server.process, worker):
        output = process.output()
        for secret in ("canary", token, token.split(".")[2], database_url, "forged"):
            assert secret not in output, secret
        assert "\x1b" not in output
    assert record(server.process, "server_stopped")


def test_a_worker_that_ends_while_redis_is_away_leaves_its_messages_to_the_sweeper() -> None:
    """Dramatiq gives back what it holds when it ends, and knows nothing of Redis's errors."""
    server = Redis(persistent=False)
    server.start()
    try:
        broker = build_broker(server.url, consumer=True)
        options = {"broker": broker, "actor_name": PROCESS_ACTOR, "queue_name": QUEUE}
        dramatiq.actor(**options)(lambda _keys: None)  # type: ignore[call-overload]
        Dispatcher(broker, chunk_rows=10).first_deliveries({str(uuid4()): [str(uuid4())]})
        consumer = broker.consume(QUEUE)
        message = next(consumer)
        assert message is not None
        server.kill()

        consumer.requeue([message])
    finally:
        server.remove()
