"""JSON Lines into events. The payload is cut out of the line and sent as it stands there.

So every number arrives exactly as it is written, and whether members repeat inside the payload
is the server's to judge. The members around it are checked here, because they would be lost.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from google.protobuf.timestamp_pb2 import Timestamp

from ingest.v1.event_pb2 import EventInput

#: Bytes of the longest line that is read; a message of the service holds 4 MiB.
LONGEST_LINE = 8 * 1024 * 1024

_TEXTS = {"type", "source", "subject", "idempotency_key"}
_FIELDS = ("type", "source", "subject", "idempotency_key", "occurred_at", "attributes", "payload")
#: For each member its value and its text.
_Members = dict[str, tuple[object, str]]

#: How RFC 3339 writes a time: protobuf takes other forms too, and offsets such as +99:99.
_rfc3339 = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)", re.ASCII
)
_blank = re.compile(r"[ \t\n\r]*")


class BrokenLine(Exception):  # it is what the line is
    """A line that is no event; the text says why."""


def numbered_lines(file: BinaryIO) -> Iterator[tuple[int, bytes, int]]:
    """Yield each line that is not blank: its number from 1, its bytes, and where it ends.

    Of a line that is too long the first `LONGEST_LINE` bytes and one more are given.
    """
    number = position = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        position += len(line)
        rest = line
        while not rest.endswith(b"\n") and (rest := file.readline(LONGEST_LINE)):
            position += len(rest)
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
        if line := line.strip(b" \t\r\n"):
            yield number, line, position


def read_event(number: int, line: bytes) -> EventInput:
    """Make the event of a line.

    An event without an idempotency key gets one from the number and the bytes of its line: the
    same line at the same place is the same event, however often it is submitted.

    Raises:
        BrokenLine: it is not JSON, or a member is unknown, repeated or of the wrong type.

    """
    if len(line) > LONGEST_LINE:
        raise BrokenLine(f"longer than {LONGEST_LINE} bytes")
    try:
        event = _event(dict(_members(line.decode())))
    except UnicodeDecodeError as error:
        raise BrokenLine(f"not UTF-8 at byte {error.start}") from error
    except UnicodeEncodeError as error:
        raise BrokenLine("a string holds a lone surrogate") from error
    except json.JSONDecodeError as error:
        raise BrokenLine(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise BrokenLine("nested too deeply") from error
    if not event.idempotency_key:
        event.idempotency_key = f"line-{hashlib.sha256(b'%d:%b' % (number, line)).hexdigest()}"
    return event


def _event(members: _Members) -> EventInput:
    event = EventInput()
    for name in members.keys() & _TEXTS:
        setattr(event, name, _text(members, name))
    if "occurred_at" in members:
        event.occurred_at.CopyFrom(_time(members))
    if "attributes" in members:
        event.attributes.update(_attributes(members))
    if "payload" in members:
        _, event.payload_json = members["payload"]
    return event


def _members(text: str) -> Iterator[tuple[str, tuple[object, str]]]:
    """Yield name, value and text of each member of the object that a line holds."""
    seen = set()
    position = _expect(text, _skip(text, 0), "{", "an object")
    if text[position : position + 1] != "}":
        while True:
            _expect(text, position, '"', "a member name")
            name, position = _scan(text, position)
            start = _expect(text, _skip(text, position), ":", "':'")
            value, end = _scan(text, start)
            if name not in _FIELDS:
                raise BrokenLine(f"{json.dumps(name)} is no field; known are {', '.join(_FIELDS)}")
            if name in seen:
                raise BrokenLine(f"{name}: given twice")
            seen.add(name)
            yield name, (value, text[start:end])
            position = _skip(text, end)
            if text[position : position + 1] == "}":
                break
            position = _expect(text, position, ",", "',' or '}'")
    if (end := _skip(text, position + 1)) != len(text):
        raise json.JSONDecodeError("Extra data", text, end)


def _skip(text: str, position: int) -> int:
    """Answer where the next token begins."""
    match = _blank.match(text, position)
    return match.end() if match else position


def _expect(text: str, position: int, token: str, name: str) -> int:
    """Answer where the token after this one begins."""
    if not text.startswith(token, position):
        raise json.JSONDecodeError(f"Expecting {name}", text, position)
    return _skip(text, position + len(token))


def _refuse(constant: str) -> object:
    raise BrokenLine(f"not JSON: {constant}")


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise BrokenLine("attributes: a name is given twice")
    return values


# Numbers are read only to be passed over, and float() takes one of any length.
_scan = json.JSONDecoder(parse_int=float, parse_constant=_refuse).raw_decode
_scan_once = json.JSONDecoder(parse_int=float, object_pairs_hook=_once).decode


def _text(members: _Members, name: str) -> str:
    value, _ = members[name]
    if not isinstance(value, str):
        raise BrokenLine(f"{name}: must be a string")
    return value


def _time(members: _Members) -> Timestamp:
    moment = Timestamp()
    text = _text(members, "occurred_at")
    try:
        # An empty one is refused like any that is no time.
        moment.FromJsonString(text if _rfc3339.fullmatch(text) else "")
    except ValueError as error:
        raise BrokenLine(
            "occurred_at: must be a time with a zone such as 2026-01-31T12:00:00Z (RFC 3339)"
        ) from error
    return moment


def _attributes(members: _Members) -> dict[str, str]:
    value, text = members["attributes"]
    if not isinstance(value, dict):
        raise BrokenLine("attributes: must be an object")
    for name, entry in _scan_once(text).items():
        if not isinstance(entry, str):
            raise BrokenLine(f"attributes: {json.dumps(name)} must be a string")
    return value
