"""The levels of a JSON value: how deep it is nested, and what is on each."""

from collections.abc import Iterator
from typing import Any


def levels(value: object) -> Iterator[list[Any]]:
    """Yield the objects and arrays of each level, from the outermost on, without recursion."""
    level: list[Any] = [value] if isinstance(value, dict | list) else []
    while level:
        yield level
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) is dict or type(inner) is list
        ]


def deeper_than(value: object, limit: int) -> bool:
    """Whether objects and arrays are nested deeper than `limit` levels; {"a": 1} has one."""
    return any(depth > limit for depth, _ in enumerate(levels(value), 1))
