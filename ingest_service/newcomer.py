"""What `ingest-service dev` makes and prints for somebody who has just started it."""

import os
import secrets
import sys
from pathlib import Path

import click

from eventstore.settings import Settings
from ingest_service.auth import issue_token
from ingest_service.probe import reachable

_TOKEN_HOURS = 24


def _buf() -> str:
    """Return the buf command: the one beside this interpreter, which `make run` installs."""
    installed = Path(sys.executable).parent / "buf"
    if not installed.exists():
        return "buf"
    here = Path.cwd()
    return str(installed.relative_to(here) if installed.is_relative_to(here) else installed)


def secret_file(data_dir: Path) -> Path:
    """Return where the data directory keeps its own secret."""
    return data_dir / "jwt_secret"


def own_secret(data_dir: Path) -> str:
    """Return the secret in the data directory, made at the first start."""
    file = secret_file(data_dir)
    if not file.exists():
        # Complete or not there at all, whatever happens meanwhile.
        new = file.with_suffix(".new")
        with os.fdopen(os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w") as opened:
            opened.write(secrets.token_urlsafe(48))
        new.rename(file)
    return file.read_text().strip()


def database_file(data_dir: Path) -> Path:
    """Return where the data directory keeps its database."""
    return data_dir.resolve() / "ingest.db"


def as_embedded(settings: Settings) -> Settings:
    """Return the settings with database and secret of the data directory, where they name none.

    Where `dev` never ran, or database or broker are named, they are returned as they are.
    """
    if (
        settings.database_url
        or settings.broker_url
        or not database_file(settings.data_dir).exists()
    ):
        return settings
    more = {"database_url": f"sqlite:///{database_file(settings.data_dir)}"}
    uses_secret = settings.jwt_algorithm == "HS256" and settings.jwt_secret is None
    if uses_secret and secret_file(settings.data_dir).exists():
        more["jwt_secret"] = own_secret(settings.data_dir)
    return Settings.load(**more)


def greet(settings: Settings, port: int) -> None:
    """Print what a newcomer needs next: address, token, and a line to paste."""
    host = reachable(settings.listen).rpartition(":")[0] or "127.0.0.1"
    address = f"{host}:{port}"
    click.echo(f"\nListening on {address} (no TLS), data in {settings.data_dir.resolve()}\n")
    if settings.jwt_secret is None:
        return
    bearer = issue_token(
        settings,
        subject="dev",
        email="dev@example.org",
        scopes=("events:write", "events:read"),
        ttl_seconds=min(_TOKEN_HOURS * 3_600, settings.jwt_max_ttl_seconds),
    )
    event = '{"event": {"type": "page.viewed", "payload": {"page": " /home ", "duration": "3.5"}}}'
    click.echo(f"export INGEST_TARGET={address} INGEST_TOKEN={bearer}\n")
    click.echo(
        f"grpcurl -plaintext -H \"authorization: Bearer {bearer}\" -d '{event}' {address}"
        " ingest.v1.IngestService/SubmitEvent\n"
    )
    click.echo(
        f"{_buf()} curl --protocol grpc --http2-prior-knowledge"
        f" -H \"authorization: Bearer {bearer}\" -d '{event}'"
        f" http://{address}/ingest.v1.IngestService/SubmitEvent\n"
    )
    sys.stdout.flush()
