"""How deep a JSON value is nested, which the edge limits and the worker judges."""

from typing import Any


def deeper_than(value: object, limit: int) -> bool:
    """Whether objects and arrays are nested deeper than `limit` levels; {"a": 1} has one."""
    level: list[Any] = [value] if isinstance(value, dict | list) else []
    for _ in range(limit):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) is dict or type(inner) is list
        ]
        if not level:
            return False
    return True
