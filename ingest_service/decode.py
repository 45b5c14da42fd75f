"""Wire events into NewEvents; every rule on what a field may hold is here."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from eventstore.clock import DatabaseClock
from eventstore.errors import TransientStorageError
from eventstore.values import NewEvent, Submission, User
from ingest.v1.event_pb2 import EventInput, PayloadFormat
from ingest_service import jsontext
from ingest_service.errors import MOST_VIOLATIONS, FieldInvalid, StorageUnavailable, Violation
from ingest_service.ids import EventIds
from ingest_service.jsontext import JsonRefused

#: Bytes of type, source, subject and idempotency_key.
MAX_TEXT_BYTES = 255
MAX_ATTRIBUTES = 64
MAX_ATTRIBUTE_KEY_BYTES = 64
MAX_ATTRIBUTE_BYTES = 1_024
#: Bytes of payload and attributes as compact JSON, so that the event can be read back in one
#: message of 4 MiB, which is what a client takes unless it says otherwise.
MAX_EVENT_BYTES = (4 << 20) - (16 << 10)
#: So many characters are never more bytes than that.
_SURELY_FITS = MAX_EVENT_BYTES // 4
#: How many times its size something may take in a row or in an answer, besides the bytes that
#: these take anyway.
MAX_GROWTH = 4
_FIXED_BYTES = 1_000
#: What properties hold once more, as text (worker/pipeline.py).
COPIED = ("page", "referrer")
_TOO_MANY_ESCAPES = "must not hold so many characters that JSON escapes"
#: How far a producer's clock may be ahead.
MAX_AHEAD = timedelta(hours=1)

#: Up to here every integer is a double, and a double that is integral is an integer.
_EXACT_DOUBLES = 1 << 53

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class EventDecoder:
    """Translates events, and gives each its id and its time of receipt."""

    def __init__(self, clock: DatabaseClock) -> None:
        """Take the clock that time of receipt and ids come from."""
        self._clock = clock
        self._ids = EventIds()

    def submission(
        self, events: Sequence[EventInput], *, user: User, field: str, size: int
    ) -> Submission:
        """Translate the events of an atomic call, `size` bytes long.

        `field` is the path of an event, with `{}` for its position. Raises FieldInvalid with
        the first violations of every bad event, and StorageUnavailable as `rows` does.
        """
        rows, refused = self.rows(events, user=user, field=field, first=0)
        if refused:
            raise FieldInvalid([violation for found in refused.values() for violation in found])
        return Submission(user=user, events=rows, atomic=True, size=size)

    def rows(
        self, events: Sequence[EventInput], *, user: User, field: str, first: int
    ) -> tuple[list[NewEvent], dict[int, list[Violation]]]:
        """Translate events whose positions start at `first`; the bad ones by position.

        Of each bad event the first violations are kept: what is wrong with events must not take
        more memory than they do. Raises StorageUnavailable while the database's time is unknown.
        """
        try:
            now = self._clock.now()
        except TransientStorageError:
            raise StorageUnavailable from None
        ids = self._ids.take(int(now.timestamp() * 1000), len(events))
        rows: list[NewEvent] = []
        refused: dict[int, list[Violation]] = {}
        for position, event in enumerate(events, first):
            try:
                rows.append(_decode(event, user.id, next(ids), now))
            except FieldInvalid as error:
                path = field.format(position)
                refused[position] = [
                    Violation(f"{path}.{violation.field}", violation.description)
                    for violation in error.violations[:MOST_VIOLATIONS]
                ]
        return rows, refused


def decode_time(timestamp: Timestamp) -> datetime:
    """Return an aware datetime; raises ValueError outside the years 1 to 9999."""
    try:
        return timestamp.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError("must be a time in the years 1 to 9999, nanos 0 to 999,999,999") from error


def decode_bound(request: Message, field: str, violations: list[Violation]) -> datetime | None:
    """Return a time that a request may leave out; note what is wrong with it."""
    if not request.HasField(field):
        return None
    try:
        return decode_time(getattr(request, field))
    except ValueError as error:
        violations.append(Violation(field, str(error)))
        return None


def decode_format(value: int, violations: list[Violation]) -> int:
    """Return a payload format; note that it is none."""
    if value not in PayloadFormat.values():
        violations.append(Violation("payload_format", "must be a known PayloadFormat"))
    return value


def check_text(name: str, text: str, violations: list[Violation], *, required: bool) -> None:
    """Note what is wrong with one of the short texts of an event."""
    least = 1 if required else 0
    if not least <= len(text.encode()) <= MAX_TEXT_BYTES or _CONTROL.search(text):
        allowed = f"must be {least} to {MAX_TEXT_BYTES} bytes without control characters"
        violations.append(Violation(name, allowed))


def _decode(event: EventInput, user_id: str, event_id: str, now: datetime) -> NewEvent:
    type_, source, subject, key = event.type, event.source, event.subject, event.idempotency_key
    violations: list[Violation] = []
    texts = type_ + source + subject + key
    # The usual event passes this one test; the precise ones are for the others.
    if not (type_ and len(texts) <= MAX_TEXT_BYTES and texts.isascii() and texts.isprintable()):
        check_text("type", type_, violations, required=True)
        check_text("source", source, violations, required=False)
        check_text("subject", subject, violations, required=False)
        check_text("idempotency_key", key, violations, required=False)
    occurred_at = now
    if event.HasField("occurred_at"):
        occurred_at = _decode_occurred_at(event.occurred_at, now, violations)
    value, payload = _decode_payload(event, violations)
    attributes = _decode_attributes(event.attributes, violations) if event.attributes else ""
    if len(payload) + len(attributes) > _SURELY_FITS:
        size = len(payload.encode()) + len(attributes.encode())
        if size > MAX_EVENT_BYTES:
            allowed = f"payload and attributes must be at most {MAX_EVENT_BYTES} bytes together"
            violations.append(Violation("payload", allowed))
    if violations:
        raise FieldInvalid(violations)
    fingerprint = b""
    if key:
        given = occurred_at.isoformat() if event.HasField("occurred_at") else None
        content = [type_, source, subject, given, attributes, value]
        fingerprint = hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).digest()
    return NewEvent(
        user_id, event_id, type_, source, subject, key, fingerprint, occurred_at, now,
        attributes, payload,
    )  # fmt: skip


def _decode_occurred_at(
    timestamp: Timestamp, now: datetime, violations: list[Violation]
) -> datetime:
    try:
        occurred_at = decode_time(timestamp)
    except ValueError as error:
        violations.append(Violation("occurred_at", str(error)))
        return now
    if occurred_at > now + MAX_AHEAD:
        violations.append(Violation("occurred_at", "must not be more than one hour ahead"))
    return occurred_at


def _decode_attributes(attributes: Mapping[str, str], violations: list[Violation]) -> str:
    if len(attributes) > MAX_ATTRIBUTES:
        violations.append(Violation("attributes", f"must have at most {MAX_ATTRIBUTES} entries"))
        return ""
    for key, value in attributes.items():
        if not 1 <= len(key.encode()) <= MAX_ATTRIBUTE_KEY_BYTES or _CONTROL.search(key):
            allowed = f"keys must be 1 to {MAX_ATTRIBUTE_KEY_BYTES} bytes, no control characters"
            violations.append(Violation("attributes", allowed))
        elif len(value.encode()) > MAX_ATTRIBUTE_BYTES or "\0" in value:
            allowed = f"must be at most {MAX_ATTRIBUTE_BYTES} bytes without U+0000"
            violations.append(Violation(f"attributes[{key}]", allowed))
    written = orjson.dumps(dict(attributes), option=orjson.OPT_SORT_KEYS)
    if len(written) > _FIXED_BYTES:
        size = sum(len(key.encode()) + len(value.encode()) for key, value in attributes.items())
        if len(written) > MAX_GROWTH * size + _FIXED_BYTES:
            violations.append(Violation("attributes", _TOO_MANY_ESCAPES))
    return written.decode()


def _decode_payload(event: EventInput, violations: list[Violation]) -> tuple[Any, str]:
    """Return the payload as value and as compact JSON text."""
    text = event.payload_json
    form = "payload_json" if text else event.WhichOneof("body")
    if form is None:
        return None, "null"
    try:
        if form == "payload_json":
            return jsontext.parse(text)
        value = _struct_value(event.payload, 1, _Room())
        written = orjson.dumps(value)
        jsontext.check(value, written)
    except JsonRefused as error:
        violations.append(error.below(form))
        return None, "null"
    except _TooMany:
        violations.append(Violation(form, jsontext.TOO_MANY))
        return None, "null"
    if (
        len(written) * 3 > _FIXED_BYTES
        and b"\\" in written
        and _grows(value, written, event.payload)
    ):
        violations.append(Violation(form, f"{_TOO_MANY_ESCAPES}, unless as payload_json"))
    return value, written.decode()


def _grows(value: dict[str, Any], written: bytes, struct: Struct) -> bool:
    """Whether a Struct is much larger where it is told as JSON, because of what JSON escapes.

    An answer holds it as payload and as `original`, and the well-known texts of it once more.
    Numbers grow as well, by less: of them nothing is refused, so an eighth of its size must be what
    escapes add.
    """
    size = struct.ByteSize()
    escapes = 5 * written.count(b"\\u00") + written.count(b"\\")
    told = 2 * len(written) + sum(len(orjson.dumps(value.get(name))) for name in COPIED)
    return 8 * escapes > size and told > MAX_GROWTH * size + _FIXED_BYTES


class _TooMany(Exception):
    """A Struct holds more values than are allowed; it is nothing of the place where that shows."""


class _Room:
    """How many values a Struct may still have."""

    def __init__(self) -> None:
        self._left = jsontext.MAX_VALUES

    def take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise _TooMany


def _struct_value(struct: Struct, depth: int, room: _Room) -> dict[str, Any]:
    """Return a Struct as a dict; by hand, because MessageToDict takes twice as long."""
    if depth > jsontext.MAX_DEPTH:
        raise JsonRefused("", f"must not be nested deeper than {jsontext.MAX_DEPTH} levels")
    room.take(len(struct.fields))
    plain: dict[str, Any] = {}
    for key, value in struct.fields.items():
        try:
            plain[key] = _plain_value(value, depth, room)
        except JsonRefused as refusal:
            raise JsonRefused(jsontext.step(key) + refusal.path, refusal.description) from None
    return plain


def _plain_value(value: Value, depth: int, room: _Room) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return value.string_value
    if kind == "number_value":
        number = value.number_value
        if not math.isfinite(number):
            raise JsonRefused("", "must be a finite number")
        return int(number) if number.is_integer() and abs(number) <= _EXACT_DOUBLES else number
    if kind == "bool_value":
        return value.bool_value
    if kind == "null_value":
        return None
    if kind == "struct_value":
        return _struct_value(value.struct_value, depth + 1, room)
    if kind == "list_value":
        return _list_value(value.list_value, depth + 1, room)
    raise JsonRefused("", "must have a kind")


def _list_value(values: ListValue, depth: int, room: _Room) -> list[Any]:
    room.take(len(values.values))
    plain: list[Any] = []
    for index, value in enumerate(values.values):
        try:
            plain.append(_plain_value(value, depth, room))
        except JsonRefused as refusal:
            raise JsonRefused(jsontext.step(index) + refusal.path, refusal.description) from None
    return plain
