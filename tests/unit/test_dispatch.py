"""From keys to messages and back: chunks, users, and whatever a stranger puts into the queue."""

import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import dramatiq
import pytest
import structlog
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from hypothesis import given
from hypothesis import strategies as st

from eventstore.settings import SettingsError
from eventstore.values import DueEvent, EventKey
from tests.kit.waiting import eventually
from worker.broker import QUEUE, RECOVERY_QUEUE, build_broker
from worker.dispatch import BackgroundDispatcher, BrokerUnavailable, Dispatcher, by_attempts
from worker.runtime import parse_keys

ALICE = "11111111-1111-5111-8111-111111111111"
BOB = "22222222-2222-5222-8222-222222222222"
CAROL = "33333333-3333-5333-8333-333333333333"


def key(number: int, user: str = ALICE) -> EventKey:
    return EventKey(user, f"01980000-0000-7000-8000-{number:012x}")


def by_user(keys: Iterable[EventKey]) -> dict[str, list[str]]:
    """Keys as the intake hands them over."""
    found: dict[str, list[str]] = {}
    for one in keys:
        found.setdefault(one.user_id, []).append(one.id)
    return found


@pytest.fixture
def broker() -> dramatiq.Broker:
    return build_broker("stub://")


def sent(broker: dramatiq.Broker, queue: str) -> list[dramatiq.Message[Any]]:
    """The messages in a queue, as a worker would decode them."""
    assert isinstance(broker, StubBroker)
    waiting = list(broker.queues[queue].queue)
    return [dramatiq.Message.decode(message) for message in waiting]


@pytest.mark.parametrize(
    "count, sizes", [(0, []), (1, [1]), (3, [3]), (4, [3, 1]), (7, [3, 3, 1]), (9, [3, 3, 3])]
)
def test_keys_go_in_chunks_and_none_is_lost(
    broker: dramatiq.Broker, count: int, sizes: list[int]
) -> None:
    keys = [key(number) for number in range(count)]

    Dispatcher(broker, chunk_rows=3).first_deliveries(by_user(keys))

    chunks = [parse_keys(message.args[0]) for message in sent(broker, QUEUE)]
    assert [len(chunk) for chunk in chunks] == sizes
    assert [one for chunk in chunks for one in chunk] == keys


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 100])
def test_keys_of_several_users_share_messages_and_none_is_lost(
    broker: dramatiq.Broker, rows: int
) -> None:
    keys = [key(number, user) for user in (ALICE, BOB, CAROL) for number in range(5)]

    Dispatcher(broker, chunk_rows=rows).first_deliveries(by_user(keys))

    chunks = [parse_keys(message.args[0]) for message in sent(broker, QUEUE)]
    assert all(1 <= len(chunk) <= rows for chunk in chunks)
    assert len(chunks) == -(-15 // rows)
    assert sorted(one for chunk in chunks for one in chunk) == sorted(keys)


def test_a_message_names_each_user_once_and_carries_no_payload(broker: dramatiq.Broker) -> None:
    keys = [key(1), key(2, BOB), key(3), key(4, BOB)]

    Dispatcher(broker, chunk_rows=500).first_deliveries(by_user(keys))

    (message,) = sent(broker, QUEUE)
    assert set(message.args[0]) == {ALICE, BOB}
    assert message.kwargs == {}
    assert sorted(parse_keys(message.args[0])) == sorted(keys)


def test_recoveries_go_to_a_queue_of_their_own_by_number_of_attempts(
    broker: dramatiq.Broker,
) -> None:
    due = [DueEvent(key(1), 2), DueEvent(key(2), 0), DueEvent(key(3), 2), DueEvent(key(4), 0)]

    Dispatcher(broker, chunk_rows=500).recoveries(due)

    assert sent(broker, QUEUE) == []
    assert [
        (message.kwargs["attempts"], parse_keys(message.args[0]))
        for message in sent(broker, RECOVERY_QUEUE)
    ] == [(0, [key(2), key(4)]), (2, [key(1), key(3)])]
    assert by_attempts([]) == []


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:1/0", "rediss://127.0.0.1:1/0", "redis://host.invalid/0"]
)
def test_a_broker_that_is_away_is_one_kind_of_error(url: str) -> None:
    dispatcher = Dispatcher(build_broker(url), chunk_rows=500)

    with pytest.raises(BrokerUnavailable):
        dispatcher.first_deliveries(by_user([key(1)]))
    with pytest.raises(BrokerUnavailable):
        dispatcher.waiting(QUEUE)


def test_a_message_whose_answer_is_lost_is_not_sent_again() -> None:
    """It may have arrived; what did not, the sweeper finds."""
    asked = []

    def hang_up(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                asked.append(connection.recv(1))
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=hang_up, args=[listener])
        thread.start()
        broker = build_broker(f"redis://127.0.0.1:{listener.getsockname()[1]}/0")
        with pytest.raises(BrokerUnavailable):
            Dispatcher(broker, chunk_rows=500).first_deliveries(by_user([key(1)]))
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()

    assert len(asked) == 1


def test_messages_of_a_dead_worker_go_back_to_the_queue_soon() -> None:
    """With what Dramatiq has by default that takes ten minutes and more."""
    broker = build_broker("redis://127.0.0.1:1/0")

    assert isinstance(broker, RedisBroker)
    assert broker.heartbeat_timeout == 15_000, "milliseconds"
    assert broker.maintenance_chance == 1_000_000, "with every command"


@pytest.mark.parametrize("url", ["", "kafka://host", "http://host", "memory"])
def test_another_broker_is_refused_with_what_is_allowed(url: str) -> None:
    with pytest.raises(SettingsError, match=r"INGEST_BROKER_URL must start with redis://"):
        build_broker(url)


def test_nobody_waits_for_a_broker_that_hangs() -> None:
    """Handing keys over returns at once, whatever the broker does."""
    release = threading.Event()

    class Hanging(Dispatcher):
        def waiting(self, queue_name: str) -> int:
            release.wait(10)
            return 0

    broker = build_broker("stub://")
    dispatcher = BackgroundDispatcher(Hanging(broker, chunk_rows=500))
    dispatcher.start()
    for number in range(5_000):
        dispatcher.dispatch(by_user([key(number)]))
    release.set()

    def count() -> int:
        return sum(len(parse_keys(message.args[0])) for message in sent(broker, QUEUE))

    eventually(lambda: count() >= 2_000)
    dispatcher.stop(5)
    assert count() <= 4_001, "what waits is bounded"


def told_of(broker: dramatiq.Broker, groups: int) -> list[str]:
    """Hand groups over one after the other, and return the names of the records."""
    dispatcher = BackgroundDispatcher(Dispatcher(broker, chunk_rows=500))
    with structlog.testing.capture_logs() as told:
        dispatcher.start()
        for number in range(groups):
            dispatcher.dispatch(by_user([key(number)]))
            # More than the least pause: each is a round of its own; nobody hears of one dropped.
            time.sleep(0.03)
        dispatcher.stop(5)
    return [record["event"] for record in told]


def test_after_a_failure_nothing_is_sent_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.dispatch._FIRST_PAUSE", 60.0)

    assert told_of(build_broker("redis://127.0.0.1:1/0"), 10) == ["broker_unavailable"]


def test_a_queue_that_is_full_is_sent_one_group_a_second(broker: dramatiq.Broker) -> None:
    assert isinstance(broker, StubBroker)
    broker.declare_queue(QUEUE)
    full = 20_001
    broker.queues[QUEUE].queue.extend([b""] * full)

    told = told_of(broker, 10)

    assert set(told) == {"queue_full"}
    assert broker.queues[QUEUE].qsize() - full == len(told) < 5


GOOD_ID = key(1).id


@pytest.mark.parametrize(
    "keys",
    [
        *(None, 1, "x", True, [], [[ALICE, GOOD_ID]], {ALICE: GOOD_ID}, {ALICE: {"a": 1}}),
        *({ALICE: None}, {ALICE: [None]}, {ALICE: [1]}, {ALICE: [[GOOD_ID]]}),
        *({"alice": [GOOD_ID]}, {"": [GOOD_ID]}, {ALICE: [""]}, {ALICE: ["x"]}),
        *({ALICE: [GOOD_ID.upper() + "0"]}, {ALICE: [GOOD_ID + "\n"]}, {ALICE: [GOOD_ID + "\0"]}),
        {ALICE: ["'; DROP TABLE events; --"]},
        {ALICE: ["{" + GOOD_ID + "}"]},
        {ALICE: [GOOD_ID + "," + GOOD_ID]},
        {ALICE: [GOOD_ID] * 10_001},
        {ALICE: [GOOD_ID], BOB: [GOOD_ID] * 10_000},
    ],
    ids=lambda value: str(value)[:40],
)
def test_keys_of_another_form_are_refused(keys: object) -> None:
    with pytest.raises(ValueError, match="keys must"):
        parse_keys(keys)


@pytest.mark.parametrize("keys", [{}, {ALICE: []}, {"nobody": []}])
def test_no_keys_are_no_work(keys: object) -> None:
    assert parse_keys(keys) == []


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=36), inner),
    max_leaves=8,
)


@given(json_like)
def test_whatever_is_in_the_queue_is_keys_or_a_value_error(keys: object) -> None:
    try:
        parsed = parse_keys(keys)
    except ValueError:
        return
    assert parsed == []
