"""The options that say where the service is and who is calling."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ingest.channel import TLS
from ingest.cli.arguments import TEXT
from ingest.client import IngestClient
from ingest.retry import RetryPolicy

_Command = TypeVar("_Command", bound=Callable[..., Any])

#: Where in click's shared notes the options are kept.
_KEPT = "ingest.connection"


def _keep(ctx: click.Context, parameter: click.Parameter, value: object) -> None:
    """Note an option's value: what is typed beats the environment, and the later the earlier."""
    if value is None or parameter.name is None:
        return
    kept = ctx.meta.setdefault(_KEPT, {})
    if ctx.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
        kept[parameter.name] = value
    else:
        kept.setdefault(parameter.name, value)


def connection_options(command: _Command) -> _Command:
    """Add the connection options; they may stand before and after a command's name alike."""
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    for names, attributes in (
        (("--key-file",), {"type": file, "help": "The client's private key (mTLS), PEM."}),
        (("--cert",), {"type": file, "help": "The client's own certificate (mTLS), PEM."}),
        (("--ca",), {"type": file, "help": "Trust this CA alone, PEM; implies --tls."}),
        (
            ("--tls/--plaintext",),
            {
                "default": None,
                "help": "Default: plaintext to this machine, TLS to any other.",
            },
        ),
        (
            ("--token-file",),
            {"type": file, "help": "Read the token from a file, anew for each call."},
        ),
        (
            ("--token",),
            {
                "type": TEXT,
                "envvar": "INGEST_TOKEN",
                "show_envvar": True,
                "help": "The JWT. Others can see it when it is typed: prefer the variable.",
            },
        ),
        (
            ("--target",),
            {
                "type": TEXT,
                "envvar": "INGEST_TARGET",
                "show_envvar": True,
                "help": "Address of the service.  [default: 127.0.0.1:50051]",
            },
        ),
    ):
        option = click.option(*names, **attributes, expose_value=False, callback=_keep)
        command = option(command)
    return command


def connect(policy: RetryPolicy | None = None) -> IngestClient:
    """Make the client that the options of the running command ask for.

    Raises:
        click.UsageError: they contradict each other, or say nothing of who is calling.

    """
    options = click.get_current_context().meta.get(_KEPT, {})
    token: str | Callable[[], str]
    if token_file := options.get("token_file"):
        token = partial(_read, token_file)
    elif not (token := options.get("token", "")):
        raise click.UsageError("no token: set INGEST_TOKEN or give --token-file")
    return IngestClient(
        options.get("target", "127.0.0.1:50051"),
        token,
        tls=_tls(options),
        policy=policy,
    )


def _read(token_file: Path) -> str:
    try:
        return token_file.read_text(encoding="ascii")
    except UnicodeDecodeError:
        raise click.BadParameter(
            "must hold a JWT, which is ASCII", param_hint="--token-file"
        ) from None


def _tls(options: dict[str, Any]) -> TLS | bool | None:
    files = [options.get(name) for name in ("ca", "cert", "key_file")]
    if not any(files):
        return options.get("tls")
    if options.get("tls") is False:
        raise click.UsageError("--plaintext needs neither certificates nor keys")
    try:
        return TLS(ca_file=files[0], cert_file=files[1], key_file=files[2])
    except ValueError as error:
        raise click.UsageError("--cert and --key-file go together") from error
