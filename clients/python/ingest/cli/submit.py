"""`ingest submit`: a file of events into the service, and a receipt for each."""

import os
import re
import sys
import time
from collections.abc import Iterator
from typing import BinaryIO, TextIO

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ingest.cli.arguments import Stream, require_stdout
from ingest.cli.connection import connect, connection_options
from ingest.cli.lines import BrokenLine, numbered_lines, read_event
from ingest.cli.output import printable, status_name, to_json
from ingest.errors import IngestError, describe_violations
from ingest.v1.event_pb2 import EventInput, Rejection
from ingest.v1.ingest_service_pb2 import StreamEventsResponse

#: The server numbers events; people number lines.
_position = re.compile(r"\bevents?\[\d+\]\.?")


@click.command(
    short_help="Submit a file of events (JSON Lines).",
    epilog="\b\nExample:\n"
    '  echo \'{"type": "page.viewed", "payload": {"page": "/"}}\' | ingest submit -\n'
    "  ingest submit events.jsonl --receipts receipts.jsonl",
)
@click.argument("file", type=Stream("rb"))
@click.option(
    "--receipts",
    type=Stream("w", encoding="utf-8"),
    help="Where the receipts go.  [default: stdout, unless that is a terminal]",
)
@connection_options
def submit(file: BinaryIO, receipts: TextIO | None) -> None:
    """Submit the events in FILE, or on stdin when it is "-": one JSON object a line.

    Members of an object: type (required); source, subject, idempotency_key (strings);
    occurred_at (RFC 3339); attributes (an object of strings); payload (any JSON, sent exactly
    as it is written).

    A line without an idempotency_key gets one made from its number and its content. So when a
    submit was cut short, run it again: what is stored already counts as a duplicate. It also
    means that an equal line at the same place of another file is the same event; give such
    events keys of their own.

    A receipt is {"line", "event_id", "duplicate", "status"}. Lines that are broken or rejected
    are named on stderr with the reason, and make the exit code 1.
    """
    if receipts is None:
        require_stdout("give --receipts FILE")
        receipts = None if sys.stdout.isatty() else sys.stdout
    console = Console(stderr=True)
    progress = Progress(
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[events]:,} events"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with connect() as client, progress:
        submission = _Submission(file, receipts, progress)
        try:
            for answer in client.submit_calls(submission.events()):
                submission.note(answer)
        except (IngestError, KeyboardInterrupt):
            submission.sum_up()
            click.echo("not finished; run the same command again to submit the rest", err=True)
            raise
    submission.sum_up()
    if submission.rejected:
        raise click.exceptions.Exit(1)


class _Submission:
    """What became of the lines so far."""

    def __init__(self, file: BinaryIO, receipts: TextIO | None, progress: Progress) -> None:
        self.rejected = 0
        self._file = file
        self._receipts = receipts
        self._progress = progress
        self._task = progress.add_task("", total=_size(file), events=0)
        self._started = time.monotonic()
        self._accepted = 0
        self._duplicates = 0
        self._answered = 0
        #: Number and end of the lines whose events are not answered yet, and of no others.
        self._lines: list[tuple[int, int]] = []

    def events(self) -> Iterator[EventInput]:
        """Read the file; lines that are broken are reported and left out."""
        for number, line, end in numbered_lines(self._file):
            try:
                event = read_event(number, line)
            except BrokenLine as error:
                self._reject(number, str(error))
                continue
            self._lines.append((number, end))
            yield event

    def note(self, answer: StreamEventsResponse) -> None:
        """Count the events of a call, write their receipts and report the rejected ones."""
        lines = self._lines[: answer.received]
        del self._lines[: answer.received]
        unexplained = {number for number, _ in lines}
        for receipt in answer.receipts:
            number, _ = lines[receipt.index - self._answered]
            unexplained.discard(number)
            if self._receipts:
                values = {
                    "line": number,
                    "event_id": receipt.event_id,
                    "duplicate": receipt.duplicate,
                    "status": status_name(receipt.status),
                }
                self._receipts.write(to_json(values) + "\n")
        for rejection in answer.rejections:
            number, _ = lines[rejection.index - self._answered]
            unexplained.discard(number)
            self._reject(number, _explain(rejection))
        for number in sorted(unexplained):
            self._reject(number, "the server explains only so many rejections at a time")
        if self._receipts:
            self._receipts.flush()
        self._accepted += answer.accepted
        self._duplicates += answer.duplicates
        self._answered += answer.received
        self._progress.update(self._task, completed=lines[-1][1], events=self._answered)

    def sum_up(self) -> None:
        """Say on stderr how it went."""
        seconds = time.monotonic() - self._started
        rate = self._answered / max(seconds, 1e-9)
        click.echo(
            f"{self._accepted} accepted, {self._duplicates} duplicates, {self.rejected} rejected "
            f"in {seconds:.1f} s ({rate:,.0f} events/s)",
            err=True,
        )

    def _reject(self, number: int, why: str) -> None:
        self.rejected += 1
        click.echo(f"line {number}: {printable(why)}", err=True)


def _explain(rejection: Rejection) -> str:
    if rejection.field_violations:
        return _position.sub("", describe_violations(rejection.field_violations))
    if rejection.event_id:
        return f"{rejection.reason}: the key belongs to event {rejection.event_id}"
    return rejection.reason


def _size(file: BinaryIO) -> int | None:
    """Answer how many bytes there are to read; None when that cannot be known."""
    try:
        return os.fstat(file.fileno()).st_size or None
    except OSError:
        return None
