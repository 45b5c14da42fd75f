"""A worker's two paths on both databases: first delivery, and recovery under a lease."""

import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from eventstore import processing
from eventstore.values import EventKey, EventStatus, Finished, Postponed
from tests.kit.rows import add, make_due, new_user, offer, row_of, rows_of
from tests.kit.waiting import eventually
from worker.pipeline import Enricher
from worker.processor import Processor


def processor(store: Engine, *enrichers: Enricher, max_attempts: int = 5) -> Processor:
    return Processor(store, enrichers=enrichers, max_attempts=max_attempts, lease_seconds=15)


def poisoned(payload: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """An enricher that cannot bear one kind of payload."""
    if payload and payload.get("poison"):
        raise LookupError("canary text of an exception")
    return {"enriched": True}


def take_due(store: Engine, *, max_attempts: int = 5, patience: float = 0.0) -> list[EventKey]:
    with store.begin() as connection:
        due = processing.take_due(
            connection,
            limit=1_000,
            again_after=15,
            max_attempts=max_attempts,
            patience=patience,
        )
    return [event.key for event in due]


def lease_and_die(store: Engine, key: EventKey, *, attempts: int) -> None:
    """Begin an attempt whose lease is over at once, as after a crash."""
    offer(store, [key])
    with store.begin() as connection:
        processing.lease(connection, [key], attempts=attempts, token=str(uuid4()), seconds=-1)


def test_a_first_delivery_processes_the_whole_group(store: Engine) -> None:
    keys = add(store, {"page": " /a "}, None, [1], {"page": "/b"})

    processor(store).first_delivery(keys)

    rows = rows_of(store, keys)
    assert [row.status for row in rows] == [2, 2, 3, 2]
    assert [row.attempts for row in rows] == [0, 0, 0, 0]
    assert json.loads(rows[0].properties)["page"] == "/a"
    assert json.loads(rows[0].properties)["user"]["email"] == "alice@example.org"
    assert all(row.processed_at >= row.received_at.replace(microsecond=0) for row in rows)
    assert all(row.lease_token is None for row in rows)


def test_a_message_that_arrives_twice_changes_nothing(store: Engine) -> None:
    keys = add(store, {}, [])
    processor(store).first_delivery(keys)
    before = rows_of(store, keys)

    processor(store).first_delivery(keys)
    processor(store).recover(keys, attempts=0)

    assert rows_of(store, keys) == before


def test_ids_of_nobody_and_of_other_users_are_passed_over(store: Engine) -> None:
    (key,) = add(store, {})
    (other,) = add(store, {}, user=new_user())

    processor(store).first_delivery(
        [EventKey(other.user_id, key.id), EventKey(str(uuid4()), str(uuid4())), other]
    )

    assert row_of(store, key).status == EventStatus.PENDING
    assert row_of(store, other).status == EventStatus.PROCESSED


def test_one_event_that_fails_does_not_fail_its_neighbours(store: Engine) -> None:
    keys = add(store, {}, {"poison": True}, {})

    processor(store, poisoned).first_delivery(keys)

    rows = rows_of(store, keys)
    assert [row.status for row in rows] == [2, 1, 2]
    assert [row.attempts for row in rows] == [0, 1, 0]
    assert rows[1].processing_error == "processing failed: LookupError"
    assert rows[1].next_attempt_at >= rows[1].received_at


def test_a_poisoned_event_is_failed_after_five_attempts_and_its_neighbours_processed(
    store: Engine,
) -> None:
    keys = add(store, {}, {"poison": True}, {}, due_in=-1)
    poison = keys[1]
    processor(store, poisoned).first_delivery(keys)

    for attempts in range(1, 5):
        assert row_of(store, poison).attempts == attempts
        make_due(store, [poison])
        assert take_due(store) == [poison]
        processor(store, poisoned).recover([poison], attempts=attempts)

    row = row_of(store, poison)
    assert (row.status, row.attempts) == (EventStatus.FAILED, 5)
    assert row.processing_error == "processing failed: LookupError"
    assert row.processed_at is not None
    assert [row_of(store, keys[0]).status, row_of(store, keys[2]).status] == [2, 2]
    make_due(store, [poison])
    assert take_due(store) == []


def test_an_event_that_fails_once_is_processed_by_the_next_attempt(store: Engine) -> None:
    calls: list[int] = []

    def flaky(_payload: Mapping[str, Any] | None) -> Mapping[str, Any]:
        calls.append(1)
        if len(calls) == 1:
            raise TimeoutError
        return {}

    (key,) = add(store, {})
    processor(store, flaky).first_delivery([key])
    make_due(store, [key])
    take_due(store)
    processor(store, flaky).recover([key], attempts=1)

    row = row_of(store, key)
    assert (row.status, row.attempts) == (EventStatus.PROCESSED, 2)
    assert row.processing_error is None


def test_recovery_counts_its_attempt_before_it_works(store: Engine) -> None:
    """So a worker that dies takes the attempt with it."""
    (key,) = add(store, {})
    offer(store, [key])
    with store.begin() as connection:
        token = str(uuid4())
        held = processing.lease(connection, [key], attempts=0, token=token, seconds=15)

    assert [event.attempts for event in held] == [1]
    row = row_of(store, key)
    assert (row.attempts, row.lease_token) == (1, token)
    assert row.status == EventStatus.PENDING


def test_who_comes_late_with_an_old_lease_is_refused(store: Engine) -> None:
    (key,) = add(store, {})
    late, current = str(uuid4()), str(uuid4())
    offer(store, [key])
    with store.begin() as connection:
        processing.lease(connection, [key], attempts=0, token=late, seconds=15)
    make_due(store, [key])
    assert take_due(store) == [key]
    with store.begin() as connection:
        processing.lease(connection, [key], attempts=1, token=current, seconds=15)
    result = Finished(key, EventStatus.PROCESSED, '{"late": true}', None)

    with store.begin() as connection:
        assert processing.finish(connection, [result], late) == 0
        assert processing.finish(connection, [result], None) == 0
        assert processing.finish(connection, [result._replace(properties="{}")], current) == 1
        assert processing.finish(connection, [result], current) == 0

    row = row_of(store, key)
    assert (row.status, row.properties) == (EventStatus.PROCESSED, "{}")
    assert row.attempts == 2


def test_a_leased_event_is_neither_delivered_nor_leased_by_others(store: Engine) -> None:
    (key,) = add(store, {})
    offer(store, [key])
    with store.begin() as connection:
        processing.lease(connection, [key], attempts=0, token=str(uuid4()), seconds=15)
    with store.begin() as connection:
        assert processing.waiting(connection, [key]) == []
        for attempts in (0, 1):
            other = str(uuid4())
            assert not processing.lease(
                connection, [key], attempts=attempts, token=other, seconds=1
            )


def test_messages_alone_begin_no_attempt_before_its_time(store: Engine) -> None:
    """Whoever can write to the broker would have an event fail for good within milliseconds."""
    (key,) = add(store, {"poison": True})
    forging = processor(store, poisoned)
    forging.first_delivery([key])
    for attempts in (1, 2, 3, 4, 1):
        forging.recover([key], attempts=attempts)

    row = row_of(store, key)
    assert (row.status, row.attempts) == (EventStatus.PENDING, 1)

    make_due(store, [key])
    assert take_due(store) == [key]
    for attempts in (1, 1, 2, 3, 4):
        forging.recover([key], attempts=attempts)

    row = row_of(store, key)
    assert (row.status, row.attempts) == (EventStatus.PENDING, 2)


def test_a_recovery_before_the_first_delivery_waits_for_the_sweeper_too(store: Engine) -> None:
    (key,) = add(store, {})
    processor(store).recover([key], attempts=0)
    assert row_of(store, key).attempts == 0

    processor(store).first_delivery([key])
    assert row_of(store, key).status == EventStatus.PROCESSED


def test_a_first_delivery_that_comes_after_the_sweep_is_as_good(store: Engine) -> None:
    late, failing = add(store, {}, {"poison": True}, due_in=-1)
    assert take_due(store) == [late, failing]
    processor(store, poisoned).first_delivery([late, failing])

    assert row_of(store, late).status == EventStatus.PROCESSED
    assert row_of(store, failing).attempts == 1
    processor(store, poisoned).recover([failing], attempts=1)
    assert row_of(store, failing).attempts == 1, "it is put off"


def test_a_delivery_that_comes_several_times_at_once_counts_one_attempt(store: Engine) -> None:
    (key,) = add(store, {"poison": True})
    with store.begin() as connection:
        assert len(processing.waiting(connection, [key])) == 1
    for _ in range(5):  # Each has read the event before any of them has written.
        with store.begin() as connection:
            processing.postpone(connection, [Postponed(key, 0.0, "why")])

    assert row_of(store, key).attempts == 1


def test_leases_that_run_out_five_times_and_once_more_end_as_failed_with_a_reason(
    store: Engine,
) -> None:
    (key,) = add(store, {}, due_in=-1)
    for attempts in range(6):
        assert take_due(store) == [key]
        with store.begin() as connection:
            processing.lease(connection, [key], attempts=attempts, token=str(uuid4()), seconds=-1)

    assert take_due(store) == []
    row = row_of(store, key)
    assert (row.status, row.attempts) == (EventStatus.FAILED, 6)
    assert row.processing_error.startswith("the last attempt did not finish")
    assert row.lease_token is None
    assert row.processed_at is not None


def test_an_event_whose_last_attempt_did_not_finish_is_tried_once_more_while_nothing_else_is(
    store: Engine,
) -> None:
    """What crashed the process was perhaps another event; one that does it alone did it."""
    suspect, running, newcomer = add(store, {"n": 0}, {"n": 1}, {"n": 2})
    lease_and_die(store, suspect, attempts=0)
    assert take_due(store, max_attempts=1) == [suspect]
    entered, release = [threading.Event() for _ in range(3)], threading.Event()

    def patient(payload: Mapping[str, Any] | None) -> Mapping[str, Any]:
        assert payload is not None
        entered[payload["n"]].set()
        if payload["n"] == 1:
            release.wait(5)
        return {"beside": entered[2].is_set()}

    shared = processor(store, patient, max_attempts=1)
    with ThreadPoolExecutor(3) as pool:
        work = [pool.submit(shared.first_delivery, [running])]
        assert entered[1].wait(5)
        work.append(pool.submit(shared.recover, [suspect], attempts=1))
        eventually(lambda: shared.is_reserved)
        work.append(pool.submit(shared.first_delivery, [newcomer]))
        assert not entered[0].is_set()
        release.set()
        for done in work:
            done.result(10)

    assert {row.status for row in rows_of(store, [suspect, running, newcomer])} == {2}
    assert json.loads(row_of(store, suspect).properties)["beside"] is False


def test_an_enricher_that_never_returns_costs_its_event_an_attempt_and_nobody_else_anything(
    store: Engine,
) -> None:
    """It waits in C, where no exception of Python reaches it."""
    before, stuck, after = add(store, {}, {"stuck": True}, {})
    release = threading.Event()

    def waiting(payload: Mapping[str, Any] | None) -> Mapping[str, Any]:
        if payload and payload.get("stuck"):
            release.wait(60)
        return {}

    quick = Processor(store, enrichers=[waiting], max_attempts=2, lease_seconds=2)
    try:
        quick.first_delivery([before, stuck, after])
        assert [row.status for row in rows_of(store, [before, stuck, after])] == [2, 1, 1]
        assert row_of(store, stuck).processing_error == "processing ran out of time"
        make_due(store, [stuck, after])
        assert sorted(take_due(store)) == [stuck, after]
        quick.recover([after], attempts=0)
        quick.recover([stuck], attempts=1)
    finally:
        release.set()

    assert [row.status for row in rows_of(store, [stuck, after])] == [4, 2]
    assert [row.attempts for row in rows_of(store, [stuck, after])] == [2, 1]


def test_while_an_enricher_works_others_may_write(store: Engine) -> None:
    """SQLite lets one transaction write at a time: an enricher that is slow must not be in it."""
    first, second = add(store, {"slow": True}, {"slow": True})
    lease_and_die(store, second, attempts=0)
    take_due(store)
    written: list[EventKey] = []

    def slow(payload: Mapping[str, Any] | None) -> Mapping[str, Any]:
        written.extend(add(store, {}))
        return {}

    processor(store, slow).first_delivery([first])
    processor(store, slow).recover([second], attempts=1)

    assert {row.status for row in rows_of(store, [first, second])} == {EventStatus.PROCESSED}
    assert {row.status for row in rows_of(store, written)} == {EventStatus.PENDING}


def test_the_sweeper_takes_what_is_due_longest_first_and_not_twice(store: Engine) -> None:
    keys = add(store, *[{}] * 5)
    for age, key in enumerate(keys, 1):
        make_due(store, [key], -float(age))
    not_due = add(store, {}, due_in=60)

    assert take_due(store) == keys[::-1]
    assert take_due(store) == [], "the messages are on their way"
    assert row_of(store, not_due[0]).attempts == 0


def test_waiting_is_no_attempt(store: Engine) -> None:
    """Workers that are down for an hour leave nothing failed."""
    keys = add(store, {}, {}, due_in=-1)
    for _ in range(20):
        assert sorted(take_due(store)) == sorted(keys)
        make_due(store, keys)

    assert [(row.status, row.attempts) for row in rows_of(store, keys)] == [(1, 0), (1, 0)]


def test_rows_never_attempted_can_be_left_to_their_messages(store: Engine) -> None:
    waiting, failed = add(store, {}, {"poison": 1})
    processor(store, poisoned).first_delivery([failed])
    make_due(store, [waiting, failed])

    assert take_due(store, patience=20) == [failed]


def test_but_not_for_ever(store: Engine) -> None:
    (waiting,) = add(store, {})
    make_due(store, [waiting], -21)

    assert take_due(store, patience=20) == [waiting]


@pytest.mark.parametrize("count", [1_500])
def test_a_large_group_of_several_users_is_processed(store: Engine, count: int) -> None:
    users = [new_user() for _ in range(3)]
    keys = [key for user in users for key in add(store, *[{}] * (count // 3), user=user)]

    processor(store).first_delivery(keys)

    assert {row.status for row in rows_of(store, keys)} == {EventStatus.PROCESSED}
