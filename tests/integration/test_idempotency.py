"""The same key twice: one event, whoever asks, however often and all at once."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct

from ingest.v1.event_pb2 import EventInput
from tests.kit.caller import Caller, at, event, refusal_of, refused
from tests.kit.server import Service, Start, running, settings_for


def test_same_key_and_content_is_answered_with_the_first_receipt(alice: Caller) -> None:
    one = event("one", idempotency_key="k", payload={"a": 1}, attributes={"x": "1", "y": "2"})
    first, again = alice.submit(one), alice.submit(one)

    assert (first.duplicate, again.duplicate) == (False, True)
    assert again.event_id == first.event_id
    assert again.received_at == first.received_at
    assert alice.counts() == {"PENDING": 1}


def test_a_duplicate_tells_what_became_of_the_first_event(service: Service, alice: Caller) -> None:
    alice.submit(event("one", idempotency_key="k"))
    service.process_all(alice)

    assert alice.submit(event("one", idempotency_key="k")).status == 2


@pytest.mark.parametrize(
    "other",
    [
        {"type_": "two"},
        {"source": "b"},
        {"subject": "b"},
        {"payload": {"a": 2}},
        {"payload": {"a": True}},
        {"payload": {"a": 1.5}},
        {"payload": {"a": 1.0}},
        {"payload": None},
        {"attributes": {"x": "2"}},
        {"attributes": {}},
        {"occurred_at": at(1_700_000_001)},
        {"occurred_at": None},
    ],
    ids=str,
)
def test_other_content_is_refused_with_the_id_of_the_first(
    alice: Caller, other: dict[str, Any]
) -> None:
    def made(type_: str = "one", **fields: Any) -> EventInput:
        good = {"source": "a", "subject": "a", "payload": {"a": 1}, "attributes": {"x": "1"}}
        return event(type_, **(good | {"occurred_at": at(1_700_000_000)} | fields))

    def keyed(**fields: Any) -> EventInput:
        return made(idempotency_key="k", **fields)

    first = alice.submit(keyed())

    refusal = refused(alice.submit, keyed(**other))

    assert refusal.verdict == ("ALREADY_EXISTS", "IDEMPOTENCY_CONFLICT")
    assert refusal.metadata["event_id"] == first.event_id
    assert refusal.retry_delay is None
    assert alice.counts() == {"PENDING": 1}
    assert alice.submit(keyed()).duplicate


def test_the_order_of_keys_and_blanks_is_no_other_content(alice: Caller) -> None:
    alice.submit(event("one", idempotency_key="k", payload_json='{"a":1,"b":[1, 2]}'))

    assert alice.submit(
        event("one", idempotency_key="k", payload_json=' {"b": [1,2], "a": 1}\n')
    ).duplicate


def test_the_form_of_the_payload_is_no_other_content(alice: Caller) -> None:
    struct = Struct()
    struct.update({"a": 1, "b": "x"})
    alice.submit(event("one", idempotency_key="k", payload={"a": 1, "b": "x"}))

    assert alice.submit(EventInput(type="one", idempotency_key="k", payload=struct)).duplicate


def test_without_a_key_nothing_is_a_duplicate(alice: Caller) -> None:
    receipts = [alice.submit(event("one")) for _ in range(3)]

    assert len({receipt.event_id for receipt in receipts}) == 3


def test_keys_belong_to_their_user(alice: Caller, bob: Caller) -> None:
    mine = alice.submit(event("one", idempotency_key="k"))
    theirs = bob.submit(event("two", idempotency_key="k"))

    assert not theirs.duplicate
    assert mine.event_id != theirs.event_id
    assert alice.get(idempotency_key="k").type == "one"
    assert bob.get(idempotency_key="k").type == "two"


@pytest.mark.parametrize("key", ["K", "k ", "\uff4b", "k\u0301", "kk", "İ", "'", "\\N", "%s"])
def test_keys_that_look_alike_are_different_keys(alice: Caller, key: str) -> None:
    alice.submit(event("one", idempotency_key="k"))

    assert not alice.submit(event("two", idempotency_key=key)).duplicate
    assert alice.get(idempotency_key=key).idempotency_key == key


@pytest.fixture
def twins(
    service: Service, tmp_path_factory: pytest.TempPathFactory, redis_url: str
) -> Iterator[tuple[Service, Service]]:
    """Two server processes on one database."""
    env = settings_for(service.database_url, redis_url)
    with running(tmp_path_factory.mktemp("twin"), env) as other:
        yield service, other


def test_of_many_calls_at_once_to_two_servers_one_stores_the_event(
    twins: tuple[Service, Service],
) -> None:
    """Submits, batches and streams race for 40 keys; each key gets one event, once."""
    subject = "racer"
    callers = [server.caller(subject) for server in twins]
    keys = [f"key-{number}" for number in range(40)]
    barrier = Barrier(6)

    def submits(caller: Caller) -> list[tuple[str, bool]]:
        receipts = [caller.submit(event("race", idempotency_key=key)) for key in keys]
        return [(receipt.event_id, receipt.duplicate) for receipt in receipts]

    def batches(caller: Caller) -> list[tuple[str, bool]]:
        receipts = caller.batch(event("race", idempotency_key=key) for key in reversed(keys))
        return [(receipt.event_id, receipt.duplicate) for receipt in receipts][::-1]

    def streams(caller: Caller) -> list[tuple[str, bool]]:
        answer = caller.stream([[event("race", idempotency_key=key)] for key in keys])
        return [(receipt.event_id, receipt.duplicate) for receipt in answer.receipts]

    def run(way: Callable[[Caller], list[tuple[str, bool]]], caller: Caller) -> Any:
        barrier.wait(10)
        return way(caller)

    with ThreadPoolExecutor(6) as pool:
        running_ways = [
            pool.submit(run, way, caller)
            for way in (submits, batches, streams)
            for caller in callers
        ]
        answers = [way.result() for way in running_ways]

    for number, key in enumerate(keys):
        found = [answer[number] for answer in answers]
        assert len({event_id for event_id, _ in found}) == 1, key
        assert Counter(duplicate for _, duplicate in found) == {False: 1, True: 5}
    assert callers[0].counts() == {"PENDING": 40}


def test_of_two_contents_at_once_one_wins_and_the_other_is_told(
    twins: tuple[Service, Service],
) -> None:
    one, other = (server.caller("contender") for server in twins)
    barrier = Barrier(2)

    def submit(caller: Caller, type_: str) -> list[str]:
        outcomes = []
        for number in range(30):
            barrier.wait(10)
            try:
                receipt = caller.submit(event(type_, idempotency_key=f"key-{number}"))
                outcomes.append(receipt.event_id)
            except grpc.RpcError as error:
                refusal = refusal_of(error)
                assert refusal.reason == "IDEMPOTENCY_CONFLICT"
                outcomes.append("lost to " + refusal.metadata["event_id"])
        return outcomes

    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(submit, one, "one"), pool.submit(submit, other, "other")]
        pairs = list(zip(*(result.result() for result in results), strict=True))

    for pair in pairs:
        assert sorted(pair, key=len)[1] == f"lost to {min(pair, key=len)}"
    assert one.counts() == {"PENDING": 30}


def test_a_refused_batch_gives_its_keys_to_others_in_the_same_commit(
    store_url: str, redis_url: str, start_service: Start
) -> None:
    """While the first commit is slow, a losing batch and a winning submit wait for one commit."""
    server = start_service(settings_for(store_url, redis_url))
    alice = server.caller()
    alice.submit(event("first", idempotency_key="taken"))
    for round_ in range(10):
        key = f"wanted-{round_}"
        loser = [event("loser", idempotency_key=key), event("other", idempotency_key="taken")]
        with ThreadPoolExecutor(2) as pool:
            lost = pool.submit(refused, alice.batch, loser)
            won = pool.submit(alice.submit, event("winner", idempotency_key=key))
            assert lost.result().reason == "IDEMPOTENCY_CONFLICT"
            assert not won.result().duplicate
        assert alice.get(idempotency_key=key).type == "winner"
    assert alice.counts() == {"PENDING": 11}
