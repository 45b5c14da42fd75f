"""Event ids: UUID version 7 as RFC 9562 has it, unique, in order."""

import sys
import threading
import time
from itertools import pairwise
from queue import SimpleQueue
from uuid import RFC_4122, UUID

import pytest

from eventstore.values import MOST_AHEAD_MS
from ingest_service.ids import EventIds

NOW = 1_769_860_800_123


def next_of(ids: EventIds, unix_ms: int) -> str:
    """Take one id, as a call with one event does."""
    return next(iter(ids.take(unix_ms, 1)))


def test_an_id_is_a_uuid_of_version_7_in_canonical_form() -> None:
    text = next_of(EventIds(), NOW)
    uuid = UUID(text)

    assert str(uuid) == text
    assert uuid.version == 7
    assert uuid.variant == RFC_4122


@pytest.mark.parametrize("unix_ms", [1, NOW, (1 << 48) - 1])
def test_the_first_48_bits_are_the_milliseconds(unix_ms: int) -> None:
    assert UUID(next_of(EventIds(), unix_ms)).int >> 80 == unix_ms


def test_ids_of_one_millisecond_are_unique_and_in_order_even_beyond_the_counter() -> None:
    """4,096 fit a millisecond; the next ones borrow from the time to come."""
    ids = EventIds()
    made = [next_of(ids, NOW) for _ in range(10_000)]

    assert all(one < other for one, other in pairwise(made))
    assert UUID(made[-1]).int >> 80 == NOW + 2
    assert all(UUID(text).version == 7 for text in made)


def test_the_ids_of_many_calls_in_one_millisecond_are_in_order() -> None:
    """Of each call, as many ids as it has events: some use all of them, some fewer."""
    ids = EventIds()
    made = [text for count in (1, 3, 1, 700, 2, 5_000, 1) for text in ids.take(NOW, count)]
    made += [next_of(ids, NOW) for _ in range(5)]

    assert all(one < other for one, other in pairwise(made))


@pytest.mark.parametrize("back", [1, 500, MOST_AHEAD_MS])
def test_a_clock_that_is_corrected_does_not_break_the_order(back: int) -> None:
    ids = EventIds()
    before, after = next_of(ids, NOW), next_of(ids, NOW - back)

    assert before < after
    assert UUID(after).int >> 80 == NOW


@pytest.mark.parametrize("back", [MOST_AHEAD_MS + 1, 600_000])
def test_a_clock_that_is_set_back_is_followed(back: int) -> None:
    """Or the ids would say another time than received_at, and choose another partition."""
    ids = EventIds()
    next_of(ids, NOW)
    after = [UUID(next_of(ids, NOW - back)) for _ in range(2)]

    assert {uuid.int >> 80 for uuid in after} == {NOW - back}
    assert after[0] < after[1]


def test_threads_never_make_the_same_number() -> None:
    """Before the random bits: each of the ids has a millisecond and counter of its own."""
    ids, made = EventIds(), SimpleQueue[str]()

    def take() -> None:
        for _ in range(200):
            for one in ids.take(NOW, 100):
                made.put(one)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    taken = [UUID(made.get()) for _ in range(80_000)]

    assert len({uuid.int >> 64 for uuid in taken}) == 80_000
    assert {uuid.version for uuid in taken} == {7}


def test_a_new_millisecond_is_taken_over_at_once() -> None:
    ids = EventIds()

    assert next_of(ids, NOW) < next_of(ids, NOW + 1) < next_of(ids, NOW + 1_000)
    assert UUID(next_of(ids, NOW + 1_000)).int >> 80 == NOW + 1_000


def test_two_processes_never_make_the_same_id() -> None:
    """Same millisecond, same counter: the 62 random bits differ."""
    one, other = EventIds(), EventIds()
    made = {text for ids in (one, other) for text in ids.take(NOW, 5_000)}

    assert len(made) == 10_000


def test_an_id_costs_next_to_nothing() -> None:
    ids = EventIds()
    started = time.process_time()
    assert len(list(ids.take(NOW, 20_000))) == 20_000

    assert time.process_time() - started < 0.5
