"""`ingest wait`: until events are processed."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator

import click

from ingest.cli.connection import connect, connection_options
from ingest.cli.output import processed_at, status_name, to_json
from ingest.errors import EventNotFound, InvalidEvent, StillPending
from ingest.v1.event_pb2 import EVENT_STATUS_PENDING, EVENT_STATUS_PROCESSED, PAYLOAD_FORMAT_NONE


@click.command(
    short_help="Wait until events are processed.",
    epilog="\b\nExample:\n  ingest submit events.jsonl | ingest wait --timeout 30 -",
)
@click.argument("event_ids", metavar="[EVENT_ID]...|-", nargs=-1, required=True)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds for all events together.",
)
@connection_options
def wait(event_ids: tuple[str, ...], timeout: float) -> None:
    """Wait until each event has its final status, and show it.

    With "-" the ids are read from stdin, one a line: bare, or the receipts of submit. The exit
    code is 1 unless every event is PROCESSED.
    """
    deadline = time.monotonic() + timeout
    ids = _ids(sys.stdin) if event_ids == ("-",) else event_ids
    seen: Counter[str] = Counter()
    with connect() as client:
        for event_id in ids:
            values: dict[str, object] = {"event_id": event_id}
            left = max(0.0, deadline - time.monotonic())
            try:
                event = client.wait(event_id, left, payload_format=PAYLOAD_FORMAT_NONE)
            except StillPending:
                values["status"] = status_name(EVENT_STATUS_PENDING)
            except (EventNotFound, InvalidEvent) as error:
                values |= {"status": error.code.name, "error": str(error)}
            else:
                values["status"] = status_name(event.status)
                values["processed_at"] = processed_at(event)
                if event.processing_error:
                    values["processing_error"] = event.processing_error
            seen[str(values["status"])] += 1
            click.echo(to_json(values))
    click.echo(", ".join(f"{count} {status}" for status, count in seen.items()), err=True)
    if set(seen) - {status_name(EVENT_STATUS_PROCESSED)}:
        raise click.exceptions.Exit(1)


def _ids(lines: Iterable[str]) -> Iterator[str]:
    """Yield the id on each line, which is a receipt or the id itself."""
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line:
            continue
        if not line.startswith("{"):
            yield line
            continue
        try:
            yield str(json.loads(line)["event_id"])
        except (ValueError, KeyError) as error:
            raise click.UsageError(
                f"line {number} of stdin is neither an id nor a receipt"
            ) from error
