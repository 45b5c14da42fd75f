"""Decides which properties can be stored and read back, whatever database keeps them."""

import math
from collections.abc import Iterable, Mapping
from datetime import date, time
from typing import Any
from uuid import UUID

import orjson

from eventstore.expansion import digits_added

#: Bytes of an event's properties as compact JSON, without `original`: what normalising makes of
#: the largest payload, and some. With that payload, which an answer holds twice, and with
#: attributes it is less than the 4 MiB that a client takes, as a Struct too.
MAX_PROPERTIES_BYTES = (1 << 20) + (32 << 10)
#: Levels of objects and arrays, as of a payload at the edge.
MAX_PROPERTIES_DEPTH = 64
#: Signed or unsigned.
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1
#: Whoever reads an event finds its payload here, so what is stored by this name is never seen.
ORIGINAL = "original"
#: Bytes that a value takes in its container at least, with a comma or brackets.
_LEAST_BYTES = 2


class UnstorableResult(Exception):
    """What enrichers returned cannot be stored; the text says why, and quotes nothing of it."""


def written(properties: Mapping[str, Any]) -> str:
    """Return properties as JSON text; times are written as RFC 3339 has them."""
    return orjson.dumps(properties, option=orjson.OPT_UTC_Z).decode()


def checked(properties: Mapping[str, Any]) -> str:
    """Return properties as JSON text, or raise UnstorableResult.

    They are looked at before they are written: orjson makes null of NaN, and would write for as
    long as there is memory where one value is in many places.
    """
    if ORIGINAL in properties:
        raise UnstorableResult(f"{ORIGINAL} is the payload's name")
    _check(properties)
    try:
        text = written(properties)
    except TypeError:
        # What is left: a float of a class of its own, a time in a strange zone.
        raise _no_json() from None
    _bound(len(text) if text.isascii() else len(text.encode()))
    return text


def _check(properties: Mapping[str, Any]) -> None:
    """Look at every value, level by level, and count what it takes at least."""
    level: list[Any] = [properties]
    size = 0
    for _ in range(MAX_PROPERTIES_DEPTH):
        inner: list[Any] = []
        for container in level:
            size += _LEAST_BYTES * len(container)
            _bound(size)
            for value in _contents(container):
                if isinstance(value, dict | list | tuple):
                    inner.append(value)
                else:
                    size += _size(value)
                    _bound(size)
        if not inner:
            return
        level = inner
    raise UnstorableResult(f"nested deeper than {MAX_PROPERTIES_DEPTH} levels")


def _contents(container: Any) -> Iterable[Any]:
    """Return the values of an array, and the keys and values of an object."""
    if not isinstance(container, dict):
        return container  # type: ignore[no-any-return]  # a list or a tuple
    if not all(isinstance(key, str) for key in container):
        raise UnstorableResult("a key is no text")
    return [*container, *container.values()]


def _size(value: object) -> int:
    """Return what a value takes beyond the least, with numbers written out as JSONB does."""
    if isinstance(value, str):
        return _text_size(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UnstorableResult("a number is NaN or infinite")
        return digits_added(value)
    if isinstance(value, int):
        if not _INT_MIN <= value <= _INT_MAX:
            raise UnstorableResult("an integer does not fit 64 bits")
    elif not (value is None or isinstance(value, date | time | UUID)):
        raise _no_json()
    return 0


def _text_size(text: str) -> int:
    if "\0" in text:
        raise UnstorableResult("a text contains U+0000")
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise UnstorableResult("a text contains a lone surrogate") from None


def _bound(size: int) -> None:
    if size > MAX_PROPERTIES_BYTES:
        raise UnstorableResult(f"properties take more than {MAX_PROPERTIES_BYTES} bytes of JSON")


def _no_json() -> UnstorableResult:
    return UnstorableResult("a value is nothing that JSON has")
