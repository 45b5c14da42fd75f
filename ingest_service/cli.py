"""The command `ingest-service`: reads settings, builds a value, calls one function."""

import asyncio
import gc
import re
import sys
from collections.abc import Callable

import click
import structlog

from eventstore.errors import StorageError, storage_errors
from eventstore.logs import configure_logs
from eventstore.settings import Settings, SettingsError
from ingest_service.errors import ServerLost

#: Seconds, minutes, hours, days.
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
#: Objects from which on garbage is collected: with the default, every dozen calls.
_GARBAGE = 20_000
_SCOPES = frozenset({"events:write", "events:read", "events:admin"})


class _WrongSettings(click.ClickException):
    """One line, and the exit code of wrong usage."""

    exit_code = 2


class _Commands(click.Group):
    """Turns what stops a command into one line: exit code 2 for a setting, 1 for the database."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            raise _WrongSettings(str(error)) from None
        except StorageError as error:
            raise click.ClickException(f"the database is unavailable: {error}") from None
        except ServerLost:
            raise click.ClickException("the gRPC server ended and cannot be replaced") from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ingest-service")
def main() -> None:
    """Event ingestion over gRPC. OK means committed.

    Settings come from environment variables that start with INGEST_; the README lists them.
    """


@main.command()
def dev() -> None:
    """Run everything in one process, on SQLite: nothing else is needed.

    \b
    Example: INGEST_LISTEN=127.0.0.1:50051 INGEST_DATA_DIR=./data ingest-service dev
    """
    from ingest_service.newcomer import greet, make_data_dir, own_secret, sole_use

    settings = Settings.load(reflection=True)
    if settings.tls_cert_file is not None:
        raise SettingsError("`dev` speaks no TLS: unset INGEST_TLS_CERT_FILE, or use `serve`")
    if settings.in_the_clear and not settings.plaintext:
        raise SettingsError(
            f"`dev` speaks no TLS and {settings.listen} is not loopback: set INGEST_LISTEN to"
            " 127.0.0.1 and a port, or INGEST_PLAINTEXT=true where TLS ends in front of it"
        )
    make_data_dir(settings.data_dir)
    with sole_use(settings.data_dir):
        if settings.jwt_secret is None and settings.jwt_algorithm == "HS256":
            settings = Settings.load(reflection=True, jwt_secret=own_secret(settings.data_dir))
        configure_logs(settings.log_level)
        from ingest_service.app import serve_embedded

        for name in ("database_url", "broker_url"):
            if getattr(settings, name):
                unused = f"INGEST_{name.upper()}"
                structlog.get_logger().warning(
                    "setting_unused", name=unused, used="INGEST_DATA_DIR"
                )
        _run(lambda: serve_embedded(settings, on_ready=lambda port: greet(settings, port)))


@main.command()
def serve() -> None:
    """Run the gRPC server against PostgreSQL and the broker, until SIGTERM.

    \b
    Example: INGEST_DATABASE_URL=postgresql://ingest@db/ingest INGEST_BROKER_URL=redis://redis
             INGEST_JWT_SECRET=... ingest-service serve
    """
    settings = Settings.load()
    configure_logs(settings.log_level)
    settings.require_database_url()
    settings.require_broker_url()
    settings.require_tls_off_loopback()
    if settings.processes > 1:
        if not int(settings.listen.rpartition(":")[2]):
            raise SettingsError(
                "INGEST_LISTEN must name a port that is not 0 for several INGEST_PROCESSES: each"
                " would have one of its own"
            )
        from ingest_service.supervisor import supervise

        sys.exit(supervise(settings.processes, [sys.executable, "-m", "ingest_service", "serve"]))
    from ingest_service.app import serve as run
    from ingest_service.supervisor import end_with_parent, is_supervised

    if is_supervised():
        end_with_parent()
    _run(lambda: run(settings, reuse_port=is_supervised(), on_ready=lambda _port: None))


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("dramatiq_options", nargs=-1, type=click.UNPROCESSED)
def worker(dramatiq_options: tuple[str, ...]) -> None:
    """Run the worker: Dramatiq's own command line, with the configured processes and threads.

    \b
    Example: ingest-service worker
    """
    from dramatiq import cli as dramatiq_cli

    settings = Settings.load()
    settings.require_database_url()
    settings.require_broker_url()
    # What Dramatiq starts anew for SIGHUP, by the first of these.
    sys.argv = [sys.executable, "-m", "ingest_service", "worker", *dramatiq_options]
    arguments = [
        "worker",
        "--processes", str(settings.worker_processes),
        "--threads", str(settings.worker_threads),
        "--worker-shutdown-timeout", str(int(settings.drain_seconds * 1000)),
        *dramatiq_options,
    ]  # fmt: skip
    parser = dramatiq_cli.make_argument_parser()  # type: ignore[no-untyped-call]  # Dramatiq's
    sys.exit(dramatiq_cli.main(parser.parse_args(arguments)))  # type: ignore[no-untyped-call]  # too


@main.command()
@click.option("--check", is_flag=True, help="Change nothing; fail when the schema is not current.")
def migrate(check: bool) -> None:
    """Bring the database to the schema of this version.

    \b
    Example: INGEST_DATABASE_URL=postgresql://owner@db/ingest ingest-service migrate
    """
    from eventstore import migrations

    settings = Settings.load()
    url = settings.require_database_url()
    configure_logs(settings.log_level)
    with storage_errors():
        if not check:
            migrations.upgrade(url)
        changes = migrations.pending_changes(url)
    for change in changes:
        click.echo(change, err=True)
    if changes:
        sys.exit(1)
    click.echo("schema is current", err=True)


def _ttl(_context: click.Context, _parameter: click.Parameter, value: str) -> int:
    match = re.fullmatch(r"([1-9][0-9]{0,6})([smhd])", value)
    if match is None:
        raise click.BadParameter("must be a number and s, m, h or d, such as 90m")
    return int(match[1]) * _UNITS[match[2]]


@main.command()
@click.option("--subject", required=True, help="Who the token is for.")
@click.option("--email", default="", help="Shown with the user's events.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    default=("events:write", "events:read"),
    show_default=True,
    help="May be given more than once.",
)
@click.option("--ttl", "ttl_seconds", default="1h", show_default=True, callback=_ttl)
def token(subject: str, email: str, scopes: tuple[str, ...], ttl_seconds: int) -> None:
    """Print a token, signed with INGEST_JWT_SECRET (or that of `dev` in the data directory).

    \b
    Example: ingest-service token --subject alice --email alice@example.org --ttl 8h
    """
    from ingest_service.auth import issue_token
    from ingest_service.newcomer import is_kept, own_secret, secret_file

    settings = Settings.load()
    if settings.jwt_secret is None and is_kept(secret_file(settings.data_dir)):
        settings = Settings.load(jwt_secret=own_secret(settings.data_dir))
    if ttl_seconds > settings.jwt_max_ttl_seconds:
        raise click.UsageError(
            f"--ttl is at most {settings.jwt_max_ttl_seconds}s (INGEST_JWT_MAX_TTL_SECONDS)"
        )
    scopes = tuple(name for scope in scopes for name in scope.split())
    unknown = set(scopes) - _SCOPES
    if unknown:
        raise click.UsageError(f"--scope must be of {', '.join(sorted(_SCOPES))}")
    click.echo(
        issue_token(settings, subject=subject, email=email, scopes=scopes, ttl_seconds=ttl_seconds)
    )


@main.command()
def sweep() -> None:
    """Sweep once: process what was left over, create partitions, apply retention.

    \b
    Example: ingest-service sweep
    """
    from ingest_service.app import sweep_once

    settings = Settings.load()
    configure_logs(settings.log_level)
    click.echo(sweep_once(settings))


@main.command()
@click.option(
    "--allow-unsafe-durability",
    is_flag=True,
    help="Only warn when PostgreSQL's durability is switched off.",
)
def doctor(allow_unsafe_durability: bool) -> None:
    """Check database, broker, keys, certificates, clocks and limits; exit code 1 for a failure.

    Where neither database nor broker are set, it looks at what `dev` keeps in the data directory.

    \b
    Example: ingest-service doctor
    """
    from ingest_service.doctor import examine
    from ingest_service.findings import Verdict
    from ingest_service.newcomer import as_embedded
    from worker.broker import check_broker

    settings = as_embedded(Settings.load())
    findings = list(
        examine(settings, check_broker, allow_unsafe_durability=allow_unsafe_durability)
    )
    for finding in findings:
        click.echo(f"{finding.verdict.value:<5}{finding.check}: {finding.text}")
    sys.exit(any(finding.verdict is Verdict.FAIL for finding in findings))


def _utf8(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    try:
        (value or "").encode()
    except UnicodeEncodeError:
        raise click.BadParameter("must be UTF-8") from None
    return value


@main.command()
@click.option(
    "--service",
    default="",
    callback=_utf8,
    help="As in grpc.health.v1; empty means the whole server.",
)
@click.option(
    "--target",
    envvar="INGEST_TARGET",
    show_envvar=True,
    callback=_utf8,
    help="Address of the server.  [default: as in INGEST_LISTEN]",
)
def health(service: str, target: str | None) -> None:
    """Ask a running server how it is; exit code 0 when it is SERVING.

    \b
    Example: INGEST_TARGET=127.0.0.1:50051 ingest-service health
    """
    from ingest_service.probe import ask

    name, serving = ask(Settings.load(), service, target)
    click.echo(name, err=True)
    sys.exit(0 if serving else 1)


def _run(start: Callable[[], object]) -> None:
    """Run a coroutine on uvloop; grpc reads twice as many stream messages with it."""
    import uvloop

    from eventstore.memory import keep_together

    keep_together()
    # What is loaded now stays: collecting garbage must not walk through it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(start())  # type: ignore[arg-type]
