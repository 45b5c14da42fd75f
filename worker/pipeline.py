"""What is done to one event: validate, normalise, enrich; pure, the clock is passed in."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import entry_points
from typing import Any

import orjson

from eventstore.depth import deeper_than
from eventstore.values import EventStatus, Finished, PendingEvent
from worker.properties import ORIGINAL, checked, written

#: Bytes of the payload as compact UTF-8 JSON.
MAX_PAYLOAD_BYTES = 1 << 20
#: Levels of objects and arrays; {"a": 1} has one.
MAX_DEPTH = 10
#: Characters of events.processing_error.
MAX_ERROR = 255

#: A deployment's own enricher: takes the payload and returns properties to add.
Enricher = Callable[[Mapping[str, Any] | None], Mapping[str, Any]]

_ENRICHERS = "ingest.enrichers"
#: Integers of so many digits always fit 64 bits.
_EXACT_DIGITS = 18
#: What JSON's numbers are parsed as; a bool, which is an int to `isinstance`, is none.
_NUMBERS = (float, int)
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


class InvalidEvent(Exception):
    """The event breaks a rule for good; the text names the rule, for people."""


class InconvertibleValue(Exception):
    """A well-known field holds a value of another kind."""


def installed_enrichers() -> list[Enricher]:
    """Load the enrichers of the entry point group `ingest.enrichers`, sorted by name."""
    return [point.load() for point in sorted(entry_points(group=_ENRICHERS), key=lambda p: p.name)]


def process(event: PendingEvent, *, now: datetime, enrichers: Sequence[Enricher]) -> Finished:
    """Return the event's final state: PROCESSED with its properties, or INVALID with the reason.

    Whatever an enricher raises passes through; what it returns and the store cannot keep raises
    UnstorableResult.
    """
    try:
        payload = validate(event)
    except InvalidEvent as error:
        return Finished(event.key, EventStatus.INVALID, None, str(error)[:MAX_ERROR])
    properties = normalise(payload, now)
    properties["user"] = {"id": event.key.user_id, "email": event.email or None}
    for enricher in enrichers:
        properties.update(enricher(payload))
    # One may hand on what is in the payload, where readers find it in any case.
    if payload and ORIGINAL in properties and properties[ORIGINAL] == payload.get(ORIGINAL):
        del properties[ORIGINAL]
    # Without enrichers it is made of a payload that is within its limits.
    text = checked(properties) if enrichers else written(properties)
    return Finished(event.key, EventStatus.PROCESSED, text, None)


def validate(event: PendingEvent) -> dict[str, Any] | None:
    """Return the payload, or raise InvalidEvent with the first rule that it breaks."""
    if not event.type:
        raise InvalidEvent("type is required")
    payload = orjson.loads(event.payload)
    if payload is not None and not isinstance(payload, dict):
        raise InvalidEvent(f"payload must be an object or null, not {_json_kind(payload)}")
    # The stored text has blanks that were not sent, so only a long one is measured exactly.
    if len(event.payload) * 4 > MAX_PAYLOAD_BYTES:
        size = len(orjson.dumps(payload))
        if size > MAX_PAYLOAD_BYTES:
            raise InvalidEvent(f"payload is {size} bytes of JSON; at most {MAX_PAYLOAD_BYTES}")
    if event.payload.count("{") + event.payload.count("[") > MAX_DEPTH and deeper_than(
        payload, MAX_DEPTH
    ):
        raise InvalidEvent(f"payload is nested deeper than {MAX_DEPTH} levels")
    return payload


def normalise(payload: Mapping[str, Any] | None, now: datetime) -> dict[str, Any]:
    """Return the time of processing and the well-known fields of the payload, converted.

    A null stays null. A value that cannot be converted is left out and named in `warnings`.
    """
    properties: dict[str, Any] = {"normalized_at": now}
    warnings = []
    for name, convert in CONVERSIONS.items() if payload else ():
        value = payload.get(name, _ABSENT)  # type: ignore[union-attr]  # not None here
        if value is _ABSENT:
            continue
        try:
            properties[name] = None if value is None else convert(value)
        except InconvertibleValue as error:
            warnings.append(f"{name}: {error}")
    if warnings:
        properties["warnings"] = warnings
    return properties


def to_text(value: Any) -> str:
    """Return stripped text; numbers are written as in JSON."""
    if isinstance(value, str):
        return value.strip()
    if type(value) in _NUMBERS:
        return orjson.dumps(value).decode()
    raise InconvertibleValue(f"{_json_kind(value)} is no text")


def to_number(value: Any) -> int | float:
    """Return a finite number; text must be a JSON number, blanks around it are allowed."""
    if type(value) in _NUMBERS:
        return value  # type: ignore[no-any-return]  # an int or a float
    if not isinstance(value, str):
        raise InconvertibleValue(f"{_json_kind(value)} is no number")
    match = _JSON_NUMBER.fullmatch(value.strip())
    if match is None:
        raise InconvertibleValue("the text is no number")
    if not match[1] and not match[2] and len(match[0]) <= _EXACT_DIGITS:
        return int(match[0])
    number = float(match[0])
    if not math.isfinite(number):
        raise InconvertibleValue("the number is too large")
    return number


#: The well-known payload fields and what they are converted to.
CONVERSIONS: dict[str, Callable[[Any], object]] = {
    "page": to_text,
    "referrer": to_text,
    "duration": to_number,
    "scroll_depth": to_number,
}

_ABSENT = object()


def _json_kind(value: object) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return kinds.get(type(value), "a number")
