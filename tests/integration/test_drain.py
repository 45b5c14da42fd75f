"""SIGTERM under load: what was acknowledged is there, and what was not is refused in good order."""

import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import grpc
import pytest
from sqlalchemy import Engine

from ingest.v1.event_pb2 import EventInput
from tests.kit.caller import event, refused
from tests.kit.processes import Processes
from tests.kit.server import (
    Start,
    keys_of,
    record,
    records,
    running,
    settings_for,
    two_processes,
)
from tests.kit.waiting import eventually


def test_a_server_drains_under_load_and_loses_nothing_that_it_acknowledged(
    store_url: str, redis_url: str, tmp_path: Path
) -> None:
    env = settings_for(store_url, redis_url, DRAIN_SECONDS="2")
    with running(tmp_path / "server", env) as server:
        alice = server.caller("loader")
        acknowledged: list[str] = []
        codes: set[grpc.StatusCode] = set()

        def load(_number: int) -> None:
            while True:
                try:
                    acknowledged.append(alice.submit(event()).event_id)
                except grpc.RpcError as error:
                    codes.add(error.code())
                    return

        def stream() -> None:
            try:
                answer = alice.stream([event()] for _ in range(1_000_000))
                acknowledged.extend(one.event_id for one in answer.receipts)
            except grpc.RpcError as error:
                codes.add(error.code())

        with ThreadPoolExecutor(5) as pool:
            loads = [pool.submit(load, number) for number in range(4)]
            loads.append(pool.submit(stream))
            eventually(lambda: len(acknowledged) > 200)
            server.process.terminate()
            for one in loads:
                one.result(timeout=20)
        assert server.process.wait() == 0
        assert codes <= {grpc.StatusCode.UNAVAILABLE}
        assert record(server.process, "server_stopped")
    with running(tmp_path / "again", env) as server:
        alice = server.caller("loader")
        stored = {
            one.event_id
            for page in alice.pages(page_size=1_000, payload_format=3)
            for one in page.events
        }
    assert set(acknowledged) <= stored


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_all_processes_at_once_lets_them_drain(
    database_url: str, redis_url: str, processes: Processes, number: signal.Signals
) -> None:
    """As Ctrl-C does, systemd, and a lost terminal: each hears it, and its supervisor once more."""
    service = two_processes(processes, database_url, redis_url)
    messages: SimpleQueue[Sequence[EventInput] | None] = SimpleQueue()
    alice = service.caller()
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(alice.stream, iter(messages.get, None))
        messages.put([event()])
        eventually(lambda: alice.counts() == {"PENDING": 1})
        os.killpg(service.process.pid, number)
        eventually(lambda: service.process.stderr().count('"draining"') == 2)
        time.sleep(
            1
        )  # five looks of the supervisor, which then sends its own, and that leaves no trace
        if number is signal.SIGHUP:  # a terminal that is closed may say so twice
            os.killpg(service.process.pid, number)
        messages.put([event()])
        messages.put(None)

        assert stream.result(10).accepted == 2
    assert service.process.wait() == 0
    assert service.process.stderr().count("server_stopped") == 2


def test_a_draining_server_refuses_new_calls_at_once_and_open_streams_in_the_end(
    store: Engine, store_url: str, redis_url: str, start_service: Start
) -> None:
    """All of them are told when to try again; what the stream sent until then is stored."""
    server = start_service(settings_for(store_url, redis_url))
    alice = server.caller()
    messages: SimpleQueue[Sequence[EventInput] | None] = SimpleQueue()
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(refused, alice.stream, iter(messages.get, None))
        messages.put([event()])
        eventually(lambda: alice.counts() == {"PENDING": 1})
        server.process.terminate()
        # Between this line of the log and the first refusal the server does nothing else.
        eventually(lambda: [one for one in records(server.process) if one.get("ready") is False])

        messages.put([event()])
        calls = (partial(alice.submit, event()), alice.counts, partial(alice.stream, []))
        refusals = [refused(call) for call in calls]
        assert not stream.done()
        refusals.append(stream.result())
        messages.put(None)

    for refusal in refusals:
        assert refusal.verdict == ("UNAVAILABLE", "DRAINING")
        assert refusal.retry_delay == 0.1
    assert server.process.wait() == 0
    assert len(keys_of(store, alice.subject)) == 2
