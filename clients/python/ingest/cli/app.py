"""The command group: where options, errors and log lines meet the terminal."""

import errno
import io
import logging
import sys

import click

from ingest.cli.connection import connection_options
from ingest.cli.output import printable
from ingest.cli.read import counts, get, list_
from ingest.cli.submit import submit
from ingest.cli.wait import wait
from ingest.errors import IngestError


class _App(click.Group):
    """A group whose commands end with one line and exit code 1 when a call fails."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except IngestError as error:
            raise click.ClickException(printable(str(error))) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # whoever read the output has seen enough; click knows what to do
            raise click.ClickException(printable(str(error))) from error


class _ToStderr(logging.Handler):
    """Shows what the client logs, such as that it tries again."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(printable(record.getMessage()), err=True)


@click.group(
    cls=_App,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExample:\n"
    "  export INGEST_TOKEN=...   # a JWT, for instance from: ingest-service token\n"
    "  ingest submit events.jsonl | ingest wait -",
)
@connection_options
def app() -> None:
    """Submit events to the ingestion service and ask what became of them.

    Data goes to stdout as JSON Lines, talk to stderr. Exit codes: 0 done, 1 something failed or
    was rejected, 2 wrong usage.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # as JSON is, whatever the terminal thinks
    logger = logging.getLogger("ingest")
    logger.setLevel(logging.INFO)
    logger.handlers = [_ToStderr()]


for _command in (submit, get, wait, list_, counts):
    app.add_command(_command)
