"""The protobuf wire format, as far as a message is cut into smaller ones of the same type."""

from collections.abc import Iterator

from ingest_service.errors import FieldInvalid, Violation

_MORE = 0x80
#: Bits of a varint at most.
_LONGEST = 64
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def cut(wire: bytes, most: int) -> Iterator[bytes]:
    """Yield a message in pieces of at most `most` fields of its top level, in order.

    Each piece is a message of the same type, and all of them together are the whole one: so a
    message of very many tiny elements is never parsed at once, which takes up to sixty times its
    size. Raises FieldInvalid at the first field that is broken, or is a group, of which there are
    none in any message of ours.
    """
    start = position = fields = 0
    while position < len(wire):
        position = _skip(wire, position)
        fields += 1
        if fields == most:
            yield wire[start:position]
            start, fields = position, 0
    if start < position:
        yield wire[start:]


def _skip(wire: bytes, position: int) -> int:
    """Return where the field ends that begins here."""
    tag, position = _varint(wire, position)
    kind = tag & 7
    if kind == _LENGTH:
        size, position = _varint(wire, position)
    elif kind == _VARINT:
        size, position = 0, _varint(wire, position)[1]
    elif kind == _FIXED64:
        size = 8
    elif kind == _FIXED32:
        size = 4
    else:
        raise _broken()
    if position + size > len(wire):
        raise _broken()
    return position + size


def _varint(wire: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(wire) and shift < _LONGEST:
        byte = wire[position]
        value |= (byte & ~_MORE) << shift
        position, shift = position + 1, shift + 7
        if byte < _MORE:
            return value, position
    raise _broken()


def _broken() -> FieldInvalid:
    return FieldInvalid([Violation("", "must be in the protobuf wire format, without groups")])
