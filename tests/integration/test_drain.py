"""SIGTERM under load: what was acknowledged is there, and what was not is refused in good order."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from tests.kit.caller import event
from tests.kit.server import record, running, settings_for
from tests.kit.waiting import eventually


def test_a_server_drains_under_load_and_loses_nothing_that_it_acknowledged(
    store_url: str, redis_url: str, tmp_path: Path
) -> None:
    with running(tmp_path / "server", settings_for(store_url, redis_url)) as server:
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
    with running(tmp_path / "again", settings_for(store_url, redis_url)) as server:
        alice = server.caller("loader")
        stored = {
            one.event_id
            for page in alice.pages(page_size=1_000, payload_format=3)
            for one in page.events
        }
    assert set(acknowledged) <= stored
