"""What processing adds to an event: converted fields, warnings, user, enrichments."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore.values import EventKey, EventStatus, PendingEvent
from ingest_service.decode import COPIED
from worker import pipeline
from worker.pipeline import Enricher, installed_enrichers, process

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
USER = "11111111-1111-5111-8111-111111111111"
KEY = EventKey(USER, "01980000-0000-7000-8000-000000000001")


def properties(
    payload: Any, *enrichers: Enricher, email: str = "alice@example.org"
) -> dict[str, Any]:
    event = PendingEvent(KEY, "page.viewed", json.dumps(payload), 0, email)
    found = process(event, now=NOW, enrichers=enrichers)
    assert found.status is EventStatus.PROCESSED
    loaded: dict[str, Any] = json.loads(found.properties or "")
    return loaded


@pytest.mark.parametrize(
    "field, sent, stored",
    [
        ("page", " /home ", "/home"),
        ("page", "\t/a b\n", "/a b"),
        ("page", "\u00a0/nbsp\u2003", "/nbsp"),
        ("page", "", ""),
        ("page", "   ", ""),
        ("page", 7, "7"),
        ("page", -1.5, "-1.5"),
        ("page", None, None),
        ("referrer", " https://example.org ", "https://example.org"),
        ("referrer", None, None),
        ("duration", "3.5", 3.5),
        ("duration", " 3 ", 3),
        ("duration", 3, 3),
        ("duration", 0, 0),
        ("duration", -0.0, -0.0),
        ("duration", "1e3", 1000.0),
        ("duration", "-2", -2),
        ("duration", None, None),
        ("duration", "123456789012345678", 123456789012345678),
        ("duration", 2**63, 2**63),
        ("duration", 1.7976931348623157e308, 1.7976931348623157e308),
        ("scroll_depth", "0.25", 0.25),
        ("scroll_depth", 100, 100),
        ("scroll_depth", None, None),
    ],
)
def test_a_known_field_is_converted(field: str, sent: Any, stored: Any) -> None:
    found = properties({field: sent})

    assert field in found
    assert found[field] == stored
    assert type(found[field]) is type(stored)
    assert "warnings" not in found


@pytest.mark.parametrize(
    "field, sent, warning",
    [
        ("page", True, "page: a boolean is no text"),
        ("page", ["/home"], "page: an array is no text"),
        ("page", {"path": "/"}, "page: an object is no text"),
        ("referrer", False, "referrer: a boolean is no text"),
        ("duration", "soon", "duration: the text is no number"),
        ("duration", "", "duration: the text is no number"),
        ("duration", "  ", "duration: the text is no number"),
        ("duration", "0x10", "duration: the text is no number"),
        ("duration", "1_000", "duration: the text is no number"),
        ("duration", "1,5", "duration: the text is no number"),
        ("duration", "+1", "duration: the text is no number"),
        ("duration", ".5", "duration: the text is no number"),
        ("duration", "٣", "duration: the text is no number"),
        ("duration", "NaN", "duration: the text is no number"),
        ("duration", "Infinity", "duration: the text is no number"),
        ("duration", "None", "duration: the text is no number"),
        ("duration", "1e999", "duration: the number is too large"),
        ("duration", "9" * 400, "duration: the number is too large"),
        ("duration", True, "duration: a boolean is no number"),
        ("duration", [], "duration: an array is no number"),
        ("scroll_depth", {}, "scroll_depth: an object is no number"),
    ],
)
def test_a_value_that_cannot_be_converted_is_left_out_and_named(
    field: str, sent: Any, warning: str
) -> None:
    found = properties({field: sent})

    assert field not in found
    assert found["warnings"] == [warning]


def test_one_bad_field_does_not_spoil_the_others() -> None:
    found = properties({"page": " /a ", "duration": "soon", "scroll_depth": None, "other": " x "})

    assert found["page"] == "/a"
    assert found["scroll_depth"] is None
    assert found["warnings"] == ["duration: the text is no number"]
    assert "other" not in found


def test_time_and_user_are_added() -> None:
    found = properties({})

    assert found == {
        "normalized_at": "2026-01-31T12:00:00Z",
        "user": {"id": USER, "email": "alice@example.org"},
    }


def test_an_unknown_address_is_null_and_never_the_word_none() -> None:
    assert properties(None, email="")["user"] == {"id": USER, "email": None}


def test_an_absent_field_is_not_invented() -> None:
    assert not {"page", "referrer", "duration", "scroll_depth", "warnings"} & set(properties({}))


def test_enrichers_add_in_their_order_and_see_the_payload() -> None:
    seen: list[Mapping[str, Any] | None] = []

    def first(payload: Mapping[str, Any] | None) -> dict[str, Any]:
        seen.append(payload)
        return {"country": "unknown", "first": True}

    found = properties({"ip": "192.0.2.1"}, first, lambda _payload: {"country": "DE"})

    assert seen == [{"ip": "192.0.2.1"}]
    assert (found["country"], found["first"]) == ("DE", True)


def test_what_an_enricher_raises_reaches_the_worker() -> None:
    """The worker counts it as an attempt; the pipeline does not judge."""

    def broken(_payload: Mapping[str, Any] | None) -> dict[str, Any]:
        raise LookupError("no such country")

    with pytest.raises(LookupError):
        properties({}, broken)


def test_an_invalid_event_is_not_enriched() -> None:
    def broken(_payload: Mapping[str, Any] | None) -> dict[str, Any]:
        raise AssertionError("called")

    event = PendingEvent(KEY, "page.viewed", "[]", 0, "")

    assert process(event, now=NOW, enrichers=[broken]).status is EventStatus.INVALID


def test_installed_enrichers_come_sorted_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment's entry points are loaded in an order that does not depend on the disk."""
    points = EntryPoints(
        EntryPoint(name, f"operator:{function}", "ingest.enrichers")
        for name, function in (("b", "add"), ("a", "sub"))
    )
    monkeypatch.setattr(pipeline, "entry_points", lambda *, group: points.select(group=group))

    assert [getattr(enricher, "__name__", "") for enricher in installed_enrichers()] == [
        "sub",
        "add",
    ]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=6,
)


def test_the_edge_knows_which_texts_are_kept_once_more() -> None:
    """It refuses what would grow too much by that; a server does not know the worker."""
    texts = {name for name, convert in pipeline.CONVERSIONS.items() if convert is pipeline.to_text}

    assert texts == set(COPIED)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(pipeline.CONVERSIONS, json_values)))
def test_every_known_field_is_either_converted_or_named(payload: dict[str, Any]) -> None:
    """Whatever the values are: nothing is lost without a word and nothing is made up."""
    found = properties(payload)
    named = {warning.partition(":")[0] for warning in found.get("warnings", [])}

    for field, value in payload.items():
        assert (field in found) != (field in named)
        assert (found.get(field, 0) is None) == (value is None)
