"""What goes to stdout: one JSON object a line, with payloads exactly as the service holds them."""

import json
import re
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ingest.v1.event_pb2 import Event, EventStatus

#: Control characters that JSON lets pass and a terminal may obey, in and beyond ASCII.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

#: Control characters that may stand between the tokens of JSON text.
_WHITESPACE = re.compile("[\t\r\n]")


def printable(text: str) -> str:
    """Escape what a terminal might obey; JSON stays the same JSON."""
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def status_name(status: EventStatus.ValueType) -> str:
    """Answer a status in a word, such as PROCESSED; one of a later version as its number."""
    if status not in EventStatus.values():
        return str(status)
    return EventStatus.Name(status).removeprefix("EVENT_STATUS_")


def to_json(values: dict[str, object], **raw: str) -> str:
    """Write an object on one line; `raw` holds members that are JSON text already."""
    text = json.dumps(values, ensure_ascii=False)
    for name, value in raw.items():
        if value:
            # Between the tokens of JSON text a line break is but a space; inside there is none.
            text = f'{text[:-1]}, "{name}": {_WHITESPACE.sub(" ", value)}}}'
    return printable(text)


def processed_at(event: Event) -> str | None:
    """Answer when an event became final; None while it is not."""
    return event.processed_at.ToJsonString() if event.HasField("processed_at") else None


def event_json(event: Event) -> str:
    """Write an event that was asked for with its payload in the JSON form."""
    values: dict[str, object] = {
        "event_id": event.event_id,
        "type": event.type,
        "source": event.source,
        "subject": event.subject,
        "idempotency_key": event.idempotency_key,
        "attributes": dict(event.attributes),
        "occurred_at": event.occurred_at.ToJsonString(),
        "received_at": event.received_at.ToJsonString(),
        "status": status_name(event.status),
        "processed": event.processed,
        "processed_at": processed_at(event),
        "processing_error": event.processing_error,
        "attempts": event.attempts,
        "user": {"id": event.user.id, "subject": event.user.subject, "email": event.user.email},
    }
    return to_json(values, payload=event.payload_json, properties=event.properties_json)


def print_table(events: Iterable[Event]) -> None:
    """Draw events for people, without their payloads."""
    table = Table("event_id", "type", "source", "received_at", "status", "processing_error")
    for event in events:
        cells = (
            event.event_id,
            event.type,
            event.source,
            event.received_at.ToJsonString(),
            status_name(event.status),
            event.processing_error,
        )
        # As Text, because rich would read square brackets as its own markup.
        table.add_row(*(Text(printable(cell)) for cell in cells))
    Console().print(table)
