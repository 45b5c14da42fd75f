"""What `ingest-service dev` makes and prints for somebody who has just started it."""

import fcntl
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from eventstore.settings import MIN_JWT_SECRET_BYTES, Settings, SettingsError
from ingest_service.auth import issue_token
from ingest_service.files import read_file
from ingest_service.probe import reachable

_TOKEN_HOURS = 24
#: How every SQLite database begins that holds anything.
_SQLITE = b"SQLite format 3\0"


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
    """Return the secret in the data directory, made at the first start.

    Raises SettingsError when it cannot be made or read, or is none.
    """
    file = secret_file(data_dir)
    try:
        if not file.exists():
            # Complete or not there at all, whatever happens meanwhile.
            new = file.with_suffix(".new")
            flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY
            with os.fdopen(os.open(new, flags, 0o600), "w") as opened:
                opened.write(secrets.token_urlsafe(48))
            new.rename(file)
        secret = read_file(file).data.decode("ascii").strip()
    except OSError as error:
        raise SettingsError(
            f"jwt_secret in INGEST_DATA_DIR cannot be read: {error.strerror}; or set"
            " INGEST_JWT_SECRET"
        ) from None
    except UnicodeDecodeError:
        secret = ""
    if len(secret) < MIN_JWT_SECRET_BYTES:
        raise SettingsError(
            "jwt_secret in INGEST_DATA_DIR is no secret that `dev` made: delete it, and the next"
            " start makes one; or set INGEST_JWT_SECRET"
        )
    return secret


def is_kept(file: Path) -> bool:
    """Whether a file of the data directory is there; SettingsError where that may not be known."""
    try:
        return file.exists()
    except OSError as error:
        raise SettingsError(f"INGEST_DATA_DIR cannot be looked into: {error.strerror}") from None


def database_file(data_dir: Path) -> Path:
    """Return where the data directory keeps its database."""
    return data_dir.resolve() / "ingest.db"


def embedded_url(data_dir: Path) -> str:
    """Return the URL of that database: what may be in a path, and means more in a URL, is quoted.

    Only that, for SQLAlchemy leaves the rest as it is, and names that are not UTF-8 stay whole.
    """
    path = str(database_file(data_dir)).replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}"


def make_data_dir(data_dir: Path) -> None:
    """Make the data directory and the file of its database, for this user alone, if need be.

    SQLite gives its other files the mode of that one. Raises SettingsError when they cannot be
    made or used.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"set INGEST_DATA_DIR to a folder: {error.strerror}") from None
    try:
        with os.fdopen(
            os.open(database_file(data_dir), os.O_CREAT | os.O_RDWR, 0o600), "rb"
        ) as opened:
            begins = opened.read(len(_SQLITE))
    except OSError as error:
        raise SettingsError(
            f"ingest.db in INGEST_DATA_DIR cannot be opened: {error.strerror}"
        ) from None
    if begins not in {b"", _SQLITE}:
        raise SettingsError(
            "ingest.db in INGEST_DATA_DIR is no SQLite database: move it away, or set"
            " INGEST_DATA_DIR to another folder"
        )


@contextmanager
def sole_use(data_dir: Path) -> Iterator[None]:
    """Keep every other `dev` out of the data directory; raises SettingsError when one is in it.

    The kernel lets go of the lock when the process ends, however it does.
    """
    try:
        descriptor = os.open(data_dir / "lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise SettingsError(f"lock in INGEST_DATA_DIR cannot be opened: {error.strerror}") from None
    with os.fdopen(descriptor):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(
                f"another `dev` runs on the data in {data_dir.resolve()}: end it, or set"
                " INGEST_DATA_DIR to another folder"
            ) from None
        except OSError as error:
            raise SettingsError(
                f"lock in INGEST_DATA_DIR cannot be locked: {error.strerror}; set it to a folder"
                " on a local disk"
            ) from None
        yield


def as_embedded(settings: Settings) -> Settings:
    """Return the settings with database and secret of the data directory, where they name none.

    Where `dev` never ran, or database or broker are named, they are returned as they are.
    """
    if (
        settings.database_url
        or settings.broker_url
        or not is_kept(database_file(settings.data_dir))
    ):
        return settings
    more = {"database_url": embedded_url(settings.data_dir)}
    uses_secret = settings.jwt_algorithm == "HS256" and settings.jwt_secret is None
    if uses_secret and is_kept(secret_file(settings.data_dir)):
        more["jwt_secret"] = own_secret(settings.data_dir)
    return Settings.load(**more)


def greet(settings: Settings, port: int) -> None:
    """Print what a newcomer needs next: address, token, and a line to paste."""
    host = reachable(settings.listen).rpartition(":")[0] or "127.0.0.1"
    address = f"{host}:{port}"
    # Its name may not be UTF-8.
    data_dir = click.format_filename(settings.data_dir.resolve())
    click.echo(f"\nListening on {address} (no TLS), data in {data_dir}\n")
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
