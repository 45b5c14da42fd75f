"""Page tokens: where the next page starts, bound to the filters of the first (AIP-158)."""

import base64
import binascii
import hashlib
import uuid

from eventstore.reading import Filters
from ingest_service.errors import FieldInvalid, Violation

_DIGEST_BYTES = 8


def make_page_token(cursor: str, filters: Filters) -> str:
    """Return an opaque token; it names no user, and gives nobody access to anything."""
    return base64.urlsafe_b64encode(uuid.UUID(cursor).bytes + _digest(filters)).decode().rstrip("=")


def read_page_token(token: str, filters: Filters) -> str:
    """Return the cursor; raises FieldInvalid unless the token was made for these filters."""
    try:
        decoded = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if len(decoded) != 16 + _DIGEST_BYTES or decoded[16:] != _digest(filters):
        allowed = "must be the next_page_token of a call with the same filters"
        raise FieldInvalid([Violation("page_token", allowed)])
    return str(uuid.UUID(bytes=decoded[:16]))


def _digest(filters: Filters) -> bytes:
    return hashlib.sha256(repr(filters).encode()).digest()[:_DIGEST_BYTES]
