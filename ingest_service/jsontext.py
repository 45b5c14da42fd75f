"""Decides which JSON texts can be stored and read back exactly; knows nothing of events.

What is refused here, PostgreSQL would refuse late (U+0000), keep and never give back (nesting),
or change (numbers beyond a double, repeated keys). Everything else is the worker's to judge.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import orjson

from eventstore.depth import deeper_than, levels
from eventstore.expansion import LONGEST_EXPANSION, digits_added
from ingest_service.errors import Violation

#: Levels of objects and arrays.
MAX_DEPTH = 64
#: Members of objects and elements of arrays, all together: each costs time, here and wherever the
#: text is read, so a text without a limit of its own could take a second for each megabyte.
MAX_VALUES = 100_000
#: Signed or unsigned.
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1
_INT_DIGITS = 20
#: A compact text of so many characters cannot open more levels.
_SMALL = 2 * MAX_DEPTH
#: How many times its size may be added when numbers are written out, as JSONB does: a text then
#: takes four times as much at most, with half for the spaces that JSONB puts between values.
_MAX_ADDED = 2.5

#: Characters of a text in which the place of what is wrong is looked for.
_FOUND_IN = 64 << 10
#: Characters of a path and of one key in it, as they are shown to the caller.
_LONGEST_PATH = 200
_LONGEST_KEY = 60

#: A number that may not fit: 19 digits, an exponent of three, or so many decimals that with an
#: exponent of two they may be zero. It starts with a digit, for which the engine can scan fast, and
#: only then looks at what stands before it.
_RISKY_NUMBER = re.compile(
    r"[0-9](?:(?<=[\s:,\[-].)|(?<=\A.))(?:[0-9]{18}|[0-9.]{200}|[0-9.]*[eE][+-]?[0-9]{3})"
)
#: The sign of an exponent, as orjson writes one: it starts with the sign, of which there are few.
_PLUS_EXPONENT = re.compile(rb"\+(?<=[0-9]e\+)")
_MINUS_EXPONENT = re.compile(rb"-(?<=[0-9]e-)")
#: The start of a number whose digits before the exponent are not all zero.
_NOT_ZERO = re.compile(r"[-0.]*[1-9]")
#: An escaped colon would upset the count of colons in `_keys_repeat`.
_ESCAPED_COLON = re.compile(r"\\u003[aA]")

_NOT_JSON = "must be JSON text (RFC 8259) without NaN, Infinity and lone surrogates"
_TOO_DEEP = f"must not be nested deeper than {MAX_DEPTH} levels"
_NUL = "must not contain U+0000"
_BAD_NUMBER = "must be a 64-bit integer or a finite double"
_REPEATED = "must not repeat a key"
#: An escaped U+0000, and not a backslash that is followed by "u0000".
_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_EXPANDS = "holds too many numbers with large exponents"
TOO_MANY = f"must hold at most {MAX_VALUES} members and elements"


class JsonRefused(ValueError):
    """A JSON text or value cannot be stored; carries the violation, its path below `field`."""

    def __init__(self, path: str, description: str) -> None:
        """Take the path of the value and what is allowed."""
        super().__init__(description)
        self.path = path
        self.description = description

    def below(self, field: str) -> Violation:
        """Return the violation with its full path."""
        return Violation((field + self.path)[:_LONGEST_PATH], self.description)


class _Bad:
    """Stands in a parsed text for a value that is not allowed."""

    def __init__(self, description: str) -> None:
        self.description = description


def parse(text: str) -> tuple[Any, str]:
    """Return the value of a JSON text and its compact form, or raise JsonRefused."""
    try:
        value = orjson.loads(text)
        written = orjson.dumps(value)
    except ValueError:
        raise _why_not(text) from None
    except TypeError:
        # orjson reads 1,024 levels, and writes 254.
        raise JsonRefused("", _TOO_DEEP) from None
    compact = written.decode()
    # The usual small text cannot break any rule of `check`.
    if len(compact) > _SMALL or "\\u" in compact or "+" in compact or "e-" in compact:
        check(value, written)
    # A text that comes out as it went in has lost nothing on the way.
    if compact != text and (_keys_repeat(text, compact) or _RISKY_NUMBER.search(text)):
        _examine(text)
    return value, compact


def check(value: Any, compact: bytes) -> None:
    """Raise JsonRefused when a parsed value, with its text by orjson, cannot be stored.

    For a large text nearly all of the time is that of looking through it. One byte is found
    fastest, then two from the end; `replace` looks for one as `in` does, and `count` does not.
    """
    # Each takes two bytes at least.
    if len(compact) > 2 * MAX_VALUES and _holds_too_many(value):
        raise JsonRefused("", TOO_MANY)
    flat = compact.replace(b"{", b"").replace(b"[", b"")
    if len(compact) - len(flat) > MAX_DEPTH and deeper_than(value, MAX_DEPTH):
        raise JsonRefused("", _TOO_DEEP)
    if b"\\" in compact and b"\\u0000" in compact and _ESCAPED_NUL.search(compact):
        if len(compact) > _FOUND_IN:
            raise JsonRefused("", _NUL)
        for trail, found in _walk(value):
            key = trail[1] if trail else None
            if any(isinstance(text, str) and "\0" in text for text in (key, found)):
                raise JsonRefused(_path(trail), _NUL)
    # A text with a time or a URL in it has a plus, and one with words an e-.
    if not (b"+" in compact and _PLUS_EXPONENT.search(compact)) and not (
        compact.rfind(b"e-") >= 0 and _MINUS_EXPONENT.search(compact)
    ):
        return
    exponents = compact.count(b"+") + compact.count(b"e-")
    if exponents * LONGEST_EXPANSION > _MAX_ADDED * len(compact):
        written_out = sum(digits_added(found) for _, found in _walk(value) if type(found) is float)
        if written_out > _MAX_ADDED * len(compact) + 2 * LONGEST_EXPANSION:
            raise JsonRefused("", _EXPANDS)


def _holds_too_many(value: Any) -> bool:
    count = 0
    for level in levels(value):
        count += sum(map(len, level))
        if count > MAX_VALUES:
            return True
    return False


def _keys_repeat(text: str, compact: str) -> bool:
    """Whether an object may have lost a key: a repeated key takes a colon with it."""
    return text.count(":") != compact.count(":") or _ESCAPED_COLON.search(text) is not None


def _examine(text: str) -> None:
    """Parse again, slowly, and find the first value that would not come back as it was sent."""
    bad: list[_Bad] = []

    def note(value: Any) -> Any:
        if isinstance(value, _Bad):
            bad.append(value)
        return value

    value = json.loads(
        text,
        parse_int=lambda number: note(_parse_int(number)),
        parse_float=lambda number: note(_parse_float(number)),
        object_pairs_hook=lambda pairs: note(_parse_object(pairs)),
    )
    if bad and len(text) > _FOUND_IN:
        raise JsonRefused("", bad[0].description)
    for trail, found in _walk(value) if bad else ():
        if isinstance(found, _Bad):
            raise JsonRefused(_path(trail), found.description)


def _why_not(text: str) -> JsonRefused:
    """Return the refusal of a text that could not be parsed: deep, a number, or no JSON at all."""
    if _nests_too_deep(text):
        return JsonRefused("", _TOO_DEEP)
    # A text of very many values would be refused anyway, and it takes a second for each million.
    if text.count(",") <= MAX_VALUES and _RISKY_NUMBER.search(text):
        try:
            _examine(text)
        except JsonRefused as refusal:
            return refusal
        except (ValueError, RecursionError):
            pass
    return JsonRefused("", _NOT_JSON)


def _parse_int(text: str) -> int | _Bad:
    if len(text) <= _INT_DIGITS and _INT_MIN <= int(text) <= _INT_MAX:
        return int(text)
    return _Bad(_BAD_NUMBER)


def _parse_float(text: str) -> float | _Bad:
    number = float(text)
    # A number that is not zero must not become zero.
    lost = number == 0 and _NOT_ZERO.match(text)
    return _Bad(_BAD_NUMBER) if lost or not math.isfinite(number) else number


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Bad:
    value = dict(pairs)
    return value if len(value) == len(pairs) else _Bad(_REPEATED)


def _nests_too_deep(text: str) -> bool:
    """Whether a text that could not be parsed opens more levels than are allowed, at its start."""
    opening = text.lstrip(" \t\r\n[{")
    return sum(map((text[: len(text) - len(opening)]).count, "[{")) > MAX_DEPTH


def _walk(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every value below and including `value`, without recursion, each after its trail.

    A trail is None or a pair of the trail above and a key or index. Paths are made of it when
    they are wanted: a long key in the path of each value below it would fill the memory.
    """
    waiting: list[tuple[Any, Any]] = [(None, value)]
    while waiting:
        trail, found = waiting.pop()
        yield trail, found
        if isinstance(found, dict):
            waiting += [((trail, key), inner) for key, inner in found.items()]
        elif isinstance(found, list):
            waiting += [((trail, index), inner) for index, inner in enumerate(found)]


def _path(trail: Any) -> str:
    steps: list[str] = []
    while trail is not None:
        trail, key = trail
        steps.append(step(key))
    return "".join(reversed(steps))


def step(key: str | int) -> str:
    """Return one step of a path: short and printable, whatever the caller's key is."""
    if isinstance(key, int):
        return f"[{key}]"
    shown = key if len(key) <= _LONGEST_KEY else key[:_LONGEST_KEY] + "..."
    return "." + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in shown)
