"""`ingest get`, `list` and `counts`: what the service knows of the caller's events."""

import re
from datetime import UTC, datetime
from itertools import islice

import click

from ingest.cli.arguments import TEXT, require_stdout
from ingest.cli.connection import connect, connection_options
from ingest.cli.output import event_json, print_table, status_name, to_json
from ingest.retry import RetryPolicy
from ingest.v1.event_pb2 import PAYLOAD_FORMAT_JSON, PAYLOAD_FORMAT_NONE, EventStatus

#: A look-up is not repeated for long: somebody sits waiting for it.
_IMPATIENT = RetryPolicy(patience=5.0)

#: Events fetched at a time.
_PAGE = 200
#: Beyond any number that one would type; the interpreter counts no further than 2**63.
_MOST = 1_000_000_000
#: Minutes or seconds of an offset that are none; `fromisoformat` makes hours of them.
_beyond_59 = re.compile(r"[+-]\d\d(:?\d\d)?:?[6-9]\d")


def _moment(_ctx: click.Context, _option: click.Parameter, value: str | None) -> datetime | None:
    """Read a time; one without a zone is refused."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        moment = datetime.min  # noqa: DTZ901  # has no zone
    if moment.utcoffset() is None or _beyond_59.search(value):
        raise click.BadParameter("must be a time with a zone such as 2026-01-31T12:00:00Z")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise click.BadParameter("must lie in the years 1 to 9999, in UTC") from None


@click.command(short_help="Show one event.", epilog="\b\nExample:\n  ingest get --key order-4711")
@click.argument("event_id", type=TEXT, required=False)
@click.option("--key", type=TEXT, help="Look it up by its idempotency key instead.")
@connection_options
def get(event_id: str | None, key: str | None) -> None:
    """Show the event EVENT_ID, or the one with an idempotency key, as JSON."""
    require_stdout()
    if bool(event_id) == bool(key):
        raise click.UsageError("give an EVENT_ID or --key")
    with connect(_IMPATIENT) as client:
        click.echo(event_json(client.get(event_id or "", idempotency_key=key or "")))


@click.command(
    "list",
    short_help="Show the newest events.",
    epilog="\b\nExample:\n  ingest list --status INVALID --after 2026-01-31T00:00:00Z --table",
)
@click.option(
    "--status",
    type=click.Choice(
        [status_name(value) for value in EventStatus.values()][1:], case_sensitive=False
    ),
    help="Only events in this status.",
)
@click.option("--type", "event_type", type=TEXT, default="", help="Only events of this type.")
@click.option("--source", type=TEXT, default="", help="Only events from this source.")
@click.option(
    "--after", callback=_moment, metavar="TIME", help="Only events received at this time or later."
)
@click.option(
    "--before", callback=_moment, metavar="TIME", help="Only events received before this time."
)
@click.option(
    "--limit",
    type=click.IntRange(1, _MOST),
    default=50,
    show_default=True,
    help="How many to show; --all for more.",
)
@click.option("--all", "everything", is_flag=True, help="Show all of them.")
@click.option("--table", is_flag=True, help="Draw a table for people, without payloads.")
@connection_options
def list_(
    *,
    status: str | None,
    event_type: str,
    source: str,
    after: datetime | None,
    before: datetime | None,
    limit: int,
    everything: bool,
    table: bool,
) -> None:
    """Show the caller's own events, newest first, one JSON object a line."""
    require_stdout()
    with connect(_IMPATIENT) as client:
        events = client.list(
            status=EventStatus.Value(f"EVENT_STATUS_{status or 'UNSPECIFIED'}"),
            event_type=event_type,
            source=source,
            received_after=after,
            received_before=before,
            payload_format=PAYLOAD_FORMAT_NONE if table else PAYLOAD_FORMAT_JSON,
            page_size=_PAGE if everything else min(limit, _PAGE),
        )
        wanted = events if everything else islice(events, limit)
        if table:
            print_table(wanted)
            return
        for event in wanted:
            click.echo(event_json(event))


@click.command(short_help="Count the events by status.", epilog="\b\nExample:\n  ingest counts")
@connection_options
def counts() -> None:
    """Count the caller's own events by status; "truncated" says that there are more final ones."""
    require_stdout()
    with connect(_IMPATIENT) as client:
        answer = client.counts()
    values: dict[str, object] = {status_name(entry.status): entry.count for entry in answer.counts}
    click.echo(to_json({**values, "truncated": answer.truncated}))
