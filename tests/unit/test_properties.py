"""What enrichers may add to an event, and in which words the worker says no."""

import datetime as dt
import json
import math
from collections.abc import Callable
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.properties import (
    MAX_PROPERTIES_BYTES,
    MAX_PROPERTIES_DEPTH,
    UnstorableResult,
    checked,
)

TOO_LARGE = f"properties take more than {MAX_PROPERTIES_BYTES} bytes of JSON"
TOO_DEEP = f"nested deeper than {MAX_PROPERTIES_DEPTH} levels"
NO_JSON = "a value is nothing that JSON has"


def nested(levels: int, wrap: Callable[[Any], Any]) -> Any:
    inner: Any = 1
    for _ in range(levels):
        inner = wrap(inner)
    return inner


def ring() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


class Colour(Enum):
    """A value that Python names."""

    RED = 1


class Double(float):
    """Of a class of its own."""


REFUSED: dict[str, tuple[Any, str]] = {
    "a number as key": ({1: 2}, "a key is no text"),
    "null as key": ([{None: 2}], "a key is no text"),
    "NaN": (math.nan, "a number is NaN or infinite"),
    "infinity, deep": ({"a": [[-math.inf]]}, "a number is NaN or infinite"),
    "NUL": ("a\0b", "a text contains U+0000"),
    "NUL in a key": ({"a\0b": 1}, "a text contains U+0000"),
    "a lone surrogate": ("\ud800", "a text contains a lone surrogate"),
    "a lone surrogate in a key": ([{"é\udfff": 1}], "a text contains a lone surrogate"),
    "a large integer": (1 << 64, "an integer does not fit 64 bits"),
    "a small integer": (-(1 << 63) - 1, "an integer does not fit 64 bits"),
    "an object": (object(), NO_JSON),
    "bytes": (b"x", NO_JSON),
    "a set": ({1}, NO_JSON),
    "an enumeration": (Colour.RED, NO_JSON),
    "a double of its own": (Double(1), NO_JSON),
    "ten megabytes": ("x" * 10_000_000, TOO_LARGE),
    "ten megabytes as key": ({"x" * 10_000_000: 1}, TOO_LARGE),
    "letters of many bytes": ("€" * (MAX_PROPERTIES_BYTES // 3), TOO_LARGE),
    "escapes": ("\x01" * (MAX_PROPERTIES_BYTES // 5), TOO_LARGE),
    "many numbers": ([0] * (MAX_PROPERTIES_BYTES // 2), TOO_LARGE),
    "numbers that are written out": ([1e308] * 4_000, TOO_LARGE),
    "small ones": ([5e-324] * 4_000, TOO_LARGE),
    "one array in 2 to the 60 places": (nested(60, lambda inner: [inner, inner]), TOO_LARGE),
    "one level too many": (nested(MAX_PROPERTIES_DEPTH, lambda inner: [inner]), TOO_DEEP),
    "objects, too deep": (nested(200, lambda inner: {"a": inner}), TOO_DEEP),
    "an array in itself": (ring(), TOO_DEEP),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_database_could_give_back_is_refused_and_said_why(name: str) -> None:
    value, why = REFUSED[name]

    with pytest.raises(UnstorableResult) as refusal:
        checked({"fine": 1, "x": value})

    assert str(refusal.value) == why


KEPT: dict[str, tuple[Any, Any]] = {
    "integers": ([(1 << 64) - 1, -(1 << 63)], [(1 << 64) - 1, -(1 << 63)]),
    "doubles": ([1e308, 5e-324, -0.0], [1e308, 5e-324, -0.0]),
    "a tuple": ((1, None, True), [1, None, True]),
    "a time": (dt.datetime(2026, 1, 31, tzinfo=dt.UTC), "2026-01-31T00:00:00Z"),
    "a day": (dt.date(2026, 1, 31), "2026-01-31"),
    "a UUID": (UUID(int=0), "00000000-0000-0000-0000-000000000000"),
    "the payload's name, elsewhere": ({"original": 1}, {"original": 1}),
    "empty": ({"": [{}, [], ""]}, {"": [{}, [], ""]}),
    "the last level": (nested(MAX_PROPERTIES_DEPTH - 1, lambda inner: [inner]),) * 2,
    "all that fits": ("x" * (MAX_PROPERTIES_BYTES - 8),) * 2,
}


@pytest.mark.parametrize("name", KEPT)
def test_what_json_has_is_kept(name: str) -> None:
    value, kept = KEPT[name]

    assert json.loads(checked({"x": value})) == {"x": kept}


def test_one_byte_more_than_fits_is_refused() -> None:
    with pytest.raises(UnstorableResult, match="more than"):
        checked({"x": "x" * (MAX_PROPERTIES_BYTES - 7)})


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=2) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=2), anything, max_size=3))
def test_a_value_is_refused_or_comes_back_as_it_was(value: dict[str, Any]) -> None:
    try:
        text = checked(value)
    except UnstorableResult:
        return

    assert json.loads(text) == value
