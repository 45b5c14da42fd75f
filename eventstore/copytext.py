"""Rows as the text that PostgreSQL's COPY reads."""

from collections.abc import Sequence
from datetime import datetime

from eventstore.values import NewEvent

#: What a new row is given, in this order.
COLUMNS = (
    "user_id, id, received_at, occurred_at, next_attempt_at, type, source, subject,"
    " idempotency_key, attributes, payload"
)
#: Stands for SQL's NULL until backslashes are escaped; no event can hold it.
_NULL = "\0"


def copy_text(rows: Sequence[NewEvent], next_attempt: datetime) -> bytes:
    """Return a line for each row; raises ValueError when one would be taken for several.

    A tab in a field would be one column too many, which COPY refuses.
    """
    due = str(next_attempt)
    lines = []
    received_at, received = next_attempt, due
    for user, id_, type_, source, subject, key, _, occurred_at, at, attributes, payload in rows:
        # The events of one message share one datetime object, mostly for both times.
        if at is not received_at:
            received_at, received = at, str(at)
        occurred = received if occurred_at is at else str(occurred_at)
        line = (
            f"{user}\t{id_}\t{received}\t{occurred}\t{due}\t{type_}\t{source}\t{subject}"
            f"\t{key or _NULL}\t{attributes or _NULL}\t{payload}"
        ).encode()
        # The edge lets no control character through; this keeps a row from ever forging another.
        if b"\n" in line:
            raise ValueError("line feed in an event")
        lines.append(line)
    # Bytes from here on: one character beyond Latin-1 would make a text of all rows four times as
    # large. A backslash is the only one that can occur here and means something to COPY.
    # The last one ends with a line feed as well: COPY then refuses a row with a carriage return.
    lines.append(b"")
    text = b"\n".join(lines)
    lines.clear()  # a group of large events is megabytes
    return text.replace(b"\\", b"\\\\").replace(_NULL.encode(), b"\\N")
