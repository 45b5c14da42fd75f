"""Whatever the edge takes, means the same to another parser."""

import json
import math
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest_service.jsontext import JsonRefused, parse

numbers = (
    st.integers() | st.integers(-(2**66), 2**66) | st.floats(allow_nan=False, allow_infinity=False)
)
number_texts = st.from_regex(
    r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True
)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=20,
)
#: Pieces from which texts are glued that are JSON by accident, or nearly.
TOKENS = r"""{ } [ ] , : "a" "a": "b": "\u003a" "\u0000" "\ud800" 1 -0 1e999 1e-999 null"""
pieces = st.sampled_from([*TOKENS.split(), " ", "\n", "18446744073709551616"])


def same(one: Any, other: Any) -> bool:
    """Equal in kind and value, which `==` alone is not: 1 == 1.0 == True."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return bool(one == other)


def holds(text: str) -> bool:
    """Whether the promise holds for a text; False when it is refused."""
    try:
        value, compact = parse(text)
    except JsonRefused:
        return False
    pairs: list[list[tuple[str, Any]]] = []
    json.loads(text, object_pairs_hook=pairs.append)
    assert all(len(dict(found)) == len(found) for found in pairs), "a key was lost"
    assert same(json.loads(text), json.loads(compact))
    assert same(json.loads(text), value)
    assert "\\u0000" not in compact.replace("\\\\", "")
    return True


@settings(max_examples=300, deadline=None)
@given(values, st.sampled_from([None, 0, 2]), st.booleans())
def test_what_is_accepted_comes_out_equal(value: Any, indent: int | None, ascii_: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_)

    if not holds(text):
        assert "\0" in str(value) or "\\u0000" in text or has_large_number(value), text


@settings(max_examples=400, deadline=None)
@example("1e-999")
@example("0.0000000000000000000000000000000000000001e400")
@given(number_texts)
def test_a_number_is_kept_exactly_or_refused(text: str) -> None:
    """As an integer of 64 bits or as the nearest double, and never as zero or infinity by loss."""
    number = json.loads(text)
    fits = -(2**63) <= number < 2**64 if isinstance(number, int) else math.isfinite(number)
    digits = text.lower().partition("e")[0]
    vanished = number == 0 and any(digit in "123456789" for digit in digits)

    assert holds(text) == (fits and not vanished)
    holds(f'{{"n": [{text}, {text}]}}')


@settings(max_examples=600, deadline=None)
@given(st.lists(pieces, max_size=12).map("".join))
def test_texts_that_are_json_by_accident_keep_the_promise(text: str) -> None:
    holds(text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_accepted_or_refused_and_nothing_else(text: str) -> None:
    holds(text)
    holds(json.dumps(text, ensure_ascii=False))


def has_large_number(value: Any) -> bool:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return any(map(has_large_number, inner))
    # Few texts of this size are mostly exponents, but some are.
    return (isinstance(value, int) and not -(2**63) <= value < 2**64) or isinstance(value, float)
