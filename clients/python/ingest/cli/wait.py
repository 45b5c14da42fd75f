"""`ingest wait`: until events are processed."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

import click

from ingest.cli.arguments import SECONDS, TEXT, require_stdout, stdin
from ingest.cli.connection import connect, connection_options
from ingest.cli.lines import LONGEST_LINE, numbered_lines
from ingest.cli.output import processed_at, status_name, to_json
from ingest.errors import EventNotFound, InvalidEvent, StillPending
from ingest.v1.event_pb2 import EVENT_STATUS_PENDING, EVENT_STATUS_PROCESSED, PAYLOAD_FORMAT_NONE


def _given(
    _ctx: click.Context, _argument: click.Parameter, event_ids: tuple[str, ...]
) -> tuple[str, ...]:
    if not all(event_ids):
        raise click.BadParameter("an event_id must not be empty")
    return event_ids


@click.command(
    short_help="Wait until events are processed.",
    epilog="\b\nExample:\n  ingest submit events.jsonl | ingest wait --timeout 30 -",
)
@click.argument(
    "event_ids",
    metavar="[EVENT_ID]...|-",
    type=TEXT,
    nargs=-1,
    required=True,
    callback=_given,
)
@click.option(
    "--timeout",
    type=SECONDS,
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
    require_stdout()
    deadline = time.monotonic() + timeout
    ids = _ids(stdin()) if event_ids == ("-",) else event_ids
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


def _ids(file: BinaryIO) -> Iterator[str]:
    """Yield the id on each line, which is a receipt or the id itself."""
    for number, line, _ in numbered_lines(file):
        try:
            yield _id(line)
        except (ValueError, KeyError, RecursionError) as error:
            raise click.UsageError(
                f"line {number} of stdin is neither an id nor a receipt with an event_id"
            ) from error


def _id(line: bytes) -> str:
    if len(line) > LONGEST_LINE:
        raise ValueError("too long")
    text = line.decode()
    if not text.startswith("{"):
        return text
    event_id = json.loads(text)["event_id"]
    if not isinstance(event_id, str) or not event_id:
        raise ValueError("no text")
    event_id.encode()  # it may hold lone surrogates
    return event_id
