"""Enrichers that do what none should, on both databases: their event fails, and nothing else."""

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import Engine

from eventstore.values import EventStatus
from tests.kit.rows import add, row_of, rows_of
from worker import pipeline
from worker.pipeline import Enricher
from worker.processor import Processor
from worker.properties import MAX_PROPERTIES_BYTES, checked
from worker.timelimit import OutOfTime


def processor(store: Engine, enricher: Enricher, **options: Any) -> Processor:
    options = {"max_attempts": 5, "lease_seconds": 15} | options
    return Processor(store, enrichers=[enricher], **options)


def returning(result: Any) -> Enricher:
    """Return an enricher that gives this back for a payload that is not empty."""
    return lambda payload: result if payload else {}


def raising(error: BaseException) -> Enricher:
    """Return an enricher that raises this for a payload that is not empty."""

    def enrich(payload: Mapping[str, Any] | None) -> Mapping[str, Any]:
        if payload:
            raise error
        return {}

    return enrich


class PanicException(BaseException):
    """As extensions in Rust raise it."""


UNUSUAL = (SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, PanicException)


@pytest.mark.parametrize("kind", UNUSUAL)
def test_an_exception_of_any_kind_fails_its_event_alone(
    store: Engine, kind: type[BaseException]
) -> None:
    keys = add(store, {}, {"poison": True}, {})

    processor(store, raising(kind())).first_delivery(keys)

    rows = rows_of(store, keys)
    assert [row.status for row in rows] == [2, 1, 2]
    assert [row.attempts for row in rows] == [0, 1, 0]
    assert rows[1].processing_error == f"processing failed: {kind.__name__}"


def test_an_enricher_that_swallows_its_end_fails_and_those_after_it_do_not(store: Engine) -> None:
    before, greedy, *after = add(store, {}, {"greedy": True}, *[{}] * 5)

    def swallowing(payload: Mapping[str, Any] | None) -> Mapping[str, Any]:
        if payload:
            until = time.monotonic() + 60
            try:
                while time.monotonic() < until:
                    pass
            except BaseException:  # noqa: BLE001, S110  # the very point
                pass
        elif seen:
            spin(0.1)
        seen.append(payload)
        return {}

    seen: list[object] = []
    processor(store, swallowing, lease_seconds=2).first_delivery([before, greedy, *after])

    rows = rows_of(store, [before, greedy, *after])
    assert [(row.status, row.attempts) for row in rows] == [(2, 0), (1, 1)] + [(1, 0)] * 5
    assert rows[1].processing_error == "processing ran out of time"


def test_an_end_that_strikes_while_a_failure_is_noted_is_still_the_end(
    store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = add(store, {}, {"poison": True}, {})

    def struck(_error: BaseException) -> str:
        raise OutOfTime

    monkeypatch.setattr("worker.processor._name_of", struck)
    processor(store, raising(SystemExit())).first_delivery(keys)

    rows = rows_of(store, keys)
    assert [(row.status, row.attempts) for row in rows] == [(2, 0), (1, 1), (1, 0)]
    assert rows[1].processing_error == "processing ran out of time"


def spin(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


@pytest.mark.parametrize(
    "name, shown",
    [
        ("N" * 5_000, "N" * 100),
        ("a\x01b\x1b[31m\n\u202ec", "a?b?[31m??c"),
        ("Größe", "Größe"),
    ],
    ids=["long", "controls", "letters"],
)
def test_the_name_of_an_exception_is_short_and_printable(
    store: Engine, name: str, shown: str
) -> None:
    (key,) = add(store, {"poison": True})

    processor(store, raising(type(name, (Exception,), {})())).first_delivery([key])

    row = row_of(store, key)
    assert (row.status, row.attempts) == (EventStatus.PENDING, 1)
    assert row.processing_error == f"processing failed: {shown}"


@pytest.mark.parametrize(
    "result, why",
    [
        ({"x": "\0"}, "a text contains U+0000"),
        ({"x": "\ud800"}, "a text contains a lone surrogate"),
        ({"x": float("nan")}, "a number is NaN or infinite"),
        ({"x": object()}, "a value is nothing that JSON has"),
        ({1: 2}, "a key is no text"),
        ({"original": "mine"}, "original is the payload's name"),
        (
            {"x": "a" * MAX_PROPERTIES_BYTES},
            f"properties take more than {MAX_PROPERTIES_BYTES} bytes of JSON",
        ),
    ],
)
def test_a_result_that_cannot_be_stored_fails_alone_and_alike_on_both_databases(
    store: Engine, result: Any, why: str
) -> None:
    keys = add(store, {}, {"a": 1}, {})

    processor(store, returning(result)).first_delivery(keys)

    rows = rows_of(store, keys)
    assert [(row.status, row.attempts) for row in rows] == [(2, 0), (1, 1), (2, 0)]
    assert rows[1].processing_error == f"the result cannot be stored: {why}"


def test_an_enricher_may_hand_the_payload_on_whatever_is_in_it(store: Engine) -> None:
    """A client chooses the names there: one of ours must not fail its event."""
    (key,) = add(store, {"original": {"a": 1}, "page": "/"})

    def handing_on(payload: Mapping[str, Any] | None) -> Mapping[str, Any]:
        return {**(payload or {}), "more": 1}

    processor(store, handing_on).first_delivery([key])

    row = row_of(store, key)
    assert row.status == EventStatus.PROCESSED
    properties = json.loads(row.properties)
    assert (properties["more"], "original" in properties) == (1, False)


def test_the_last_attempt_of_such_an_event_ends_it_with_that_reason(store: Engine) -> None:
    (key,) = add(store, {"a": 1})

    processor(store, returning({"x": "\0"}), max_attempts=1).first_delivery([key])

    row = row_of(store, key)
    assert row.status == EventStatus.FAILED
    assert row.processing_error == "the result cannot be stored: a text contains U+0000"


def test_what_the_database_refuses_all_the_same_fails_alone_too(
    store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known to be wrong is refused before; here something slips through."""
    spoilt = "\ud800"  # no driver takes it
    monkeypatch.setattr(
        pipeline, "checked", lambda found: spoilt if "bad" in found else checked(found)
    )
    keys = add(store, {}, {"a": 1}, {})

    processor(store, returning({"bad": 1})).first_delivery(keys)

    rows = rows_of(store, keys)
    assert [(row.status, row.attempts) for row in rows] == [(2, 0), (1, 1), (2, 0)]
    assert rows[1].processing_error == "the result cannot be stored"
