"""Who is alone is alone, and nobody waits for ever."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest

from tests.kit.waiting import eventually
from worker.solitude import Solitude


class Guest:
    """Goes in, in a thread of its own, and stays until it is let out."""

    def __init__(self, pool: ThreadPoolExecutor, room: AbstractContextManager[None]) -> None:
        self.inside = threading.Event()
        self._let_out = threading.Event()
        self._done: Future[None] = pool.submit(self._stay, room)

    def leave(self) -> None:
        self._let_out.set()
        self._done.result(10)

    def _stay(self, room: AbstractContextManager[None]) -> None:
        with room:
            self.inside.set()
            self._let_out.wait(10)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for guests."""
    with ThreadPoolExecutor(8) as threads:
        yield threads


def test_many_are_inside_beside_each_other(pool: ThreadPoolExecutor) -> None:
    solitude = Solitude()
    guests = [Guest(pool, solitude.beside_others()) for _ in range(3)]

    assert all(guest.inside.wait(10) for guest in guests)
    for guest in guests:
        guest.leave()


def test_who_wants_to_be_alone_waits_for_others_and_goes_before_newcomers(
    pool: ThreadPoolExecutor,
) -> None:
    solitude = Solitude()
    first = Guest(pool, solitude.beside_others())
    assert first.inside.wait(10)
    hermit = Guest(pool, solitude.alone())
    eventually(lambda: solitude.is_claimed)
    newcomer = Guest(pool, solitude.beside_others())
    assert not hermit.inside.is_set()

    first.leave()
    assert hermit.inside.wait(10)
    assert not newcomer.inside.is_set()

    hermit.leave()
    assert newcomer.inside.wait(10)
    newcomer.leave()


def test_two_are_not_alone_together(pool: ThreadPoolExecutor) -> None:
    solitude = Solitude()
    hermits = [Guest(pool, solitude.alone()) for _ in range(2)]
    eventually(lambda: any(guest.inside.is_set() for guest in hermits))
    one, other = sorted(hermits, key=lambda guest: not guest.inside.is_set())
    assert not other.inside.is_set()

    one.leave()
    assert other.inside.wait(10)
    other.leave()


def test_whatever_is_raised_inside_others_get_in(pool: ThreadPoolExecutor) -> None:
    solitude = Solitude()
    for room in (solitude.beside_others, solitude.alone):
        with pytest.raises(LookupError), room():
            raise LookupError

    guest = Guest(pool, solitude.alone())
    assert guest.inside.wait(10)
    guest.leave()
