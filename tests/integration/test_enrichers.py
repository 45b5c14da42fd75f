"""Enrichers that do what none should, on both databases: their event fails, and nothing else."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import Engine

from eventstore.values import EventStatus
from tests.kit.rows import add, row_of, rows_of
from worker.pipeline import Enricher
from worker.processor import Processor
from worker.timelimit import OutOfTime


def processor(store: Engine, enricher: Enricher, **options: Any) -> Processor:
    options = {"max_attempts": 5, "lease_seconds": 15} | options
    return Processor(store, enrichers=[enricher], **options)


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
