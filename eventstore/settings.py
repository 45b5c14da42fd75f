"""Every setting of every process, read from the environment; knows no library but its own.

Server, worker and migration are configured by one environment, so there is one class, in the
lowest package that all of them share.
"""

import os
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

#: RFC 7518 section 3.2: an HS256 key is at least as long as the hash, 256 bits.
MIN_JWT_SECRET_BYTES = 32
_LARGEST_PORT = 65_535
#: The most of what else has no end: what is beyond is a mistake, or breaks dates and time-outs.
_YEAR = 31_536_000
_DAY = 86_400
#: The least of what is not zero: one in a quarter of an hour.
_LEAST_RATE = 0.001
_MOST_DAYS = 10_000
_MOST = 1_000_000_000
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
#: What a database URL starts with (see engine.normalise_url).
_DATABASES = ("postgresql://", "postgres://", "postgresql+psycopg2://", "sqlite://")

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


def _none_or_some(rate: float) -> float:
    if 0 < rate < _LEAST_RATE:
        raise PydanticCustomError(
            "rate", "Input should be 0 or greater than or equal to {least}", {"least": _LEAST_RATE}
        )
    return rate


def _utf8(secret: SecretStr) -> SecretStr:
    """Refuse lone surrogates, as which bytes that are not UTF-8 come in; pydantic takes them."""
    text = secret.get_secret_value()
    # A SQLite file may have any name.
    if _LONE_SURROGATE.search(text) and not text.startswith("sqlite:"):
        raise PydanticCustomError("utf8", "Input should be UTF-8")
    return secret


Rate = Annotated[float, AfterValidator(_none_or_some)]
Secret = Annotated[SecretStr, AfterValidator(_utf8)]

#: Variables of the client's commands, and of the supervisor for its processes.
_OTHER_VARIABLES = frozenset({"INGEST_TOKEN", "INGEST_TARGET", "INGEST_SUPERVISED"})


class SettingsError(Exception):
    """A setting is missing or contradictory; the text is one line that says what to set."""


class Settings(BaseSettings):
    """The settings, each read from `INGEST_` plus its name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="INGEST_",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
    )

    database_url: Secret | None = Field(
        None, description="`postgresql://user:password@host/name`, or `sqlite:///path`"
    )
    broker_url: Secret | None = Field(
        None, description="`redis://`, `rediss://` or `amqp://`; a Redis of its own, `noeviction`"
    )
    data_dir: Path = Field(Path(".ingest"), description="where `dev` keeps database and secret")

    listen: Text = Field(
        "127.0.0.1:50051",
        pattern=r"^(\[[0-9a-fA-F:.]+\]|[^:\[\]]+):[0-9]{1,5}$",
        description="address and port of the gRPC server",
    )
    plaintext: bool = Field(
        default=False, description="no TLS off loopback: it ends in front of this server"
    )
    processes: int = Field(1, ge=1, le=64, description="server processes sharing the port")
    reflection: bool = Field(default=False, description="answer gRPC reflection, without a token")
    tls_cert_file: Path | None = Field(None, description="PEM certificate chain; switches TLS on")
    tls_key_file: Path | None = Field(None, description="PEM private key of the certificate")
    tls_client_ca_file: Path | None = Field(
        None, description="PEM authorities; clients must then show a certificate (mTLS)"
    )
    drain_seconds: float = Field(
        20.0, ge=0, le=600, description="time that open calls get after SIGTERM"
    )

    jwt_algorithm: Literal["HS256", "RS256", "ES256", "EdDSA"] = Field(
        "HS256", description="the one accepted signature algorithm"
    )
    jwt_secret: Secret | None = Field(None, description="HS256 key, at least 32 bytes")
    jwt_public_key_file: Path | None = Field(
        None, description="PEM public key, for RS256 and so on"
    )
    jwt_jwks_file: Path | None = Field(None, description="JWK Set file, in place of the PEM key")
    jwt_jwks_url: Text | None = Field(None, description="JWK Set URL, in place of the PEM key")
    jwt_issuer: Text = Field("ingest", description="required `iss` of a token")
    jwt_audience: Text = Field("ingest", description="required `aud` of a token")
    jwt_max_ttl_seconds: int = Field(
        86_400, ge=60, le=_YEAR, description="longest accepted life of a token, `exp` minus `iat`"
    )
    jwt_revocation_file: Path | None = Field(
        None, description="JSON file of revoked tokens, in force within five seconds"
    )

    user_events_per_second: Rate = Field(
        0,
        ge=0,
        le=_MOST,
        description="events that a user may submit to each server process, in bursts of two"
        " seconds; 0: no limit",
    )
    user_bytes_per_second: Rate = Field(
        0,
        ge=0,
        le=_MOST,
        description="bytes that a user may submit to each server process; 0: no limit",
    )
    user_reads_per_second: Rate = Field(
        0,
        ge=0,
        le=_MOST,
        description="reading calls that a user may make of each server process; 0: no limit",
    )
    user_streams: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="streams that a user may have open on each server process; 0: no limit",
    )
    user_pending_events: int = Field(
        0,
        ge=0,
        le=_MOST,
        description="PENDING events that a user may have, counted every second or less often;"
        " 0: no limit",
    )
    max_connections: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="connections that clients may have to each server process; fewer where it may"
        " open few files",
    )

    group_rows: int = Field(2_000, ge=1, le=50_000, description="most events in one transaction")
    group_bytes: int = Field(
        1 << 20, ge=1 << 10, le=64 << 20, description="most event bytes in one transaction"
    )
    waiting_rows: int = Field(
        20_000,
        ge=1_000,
        le=10_000_000,
        description="most events waiting in the intake, then it refuses",
    )
    waiting_bytes: int = Field(
        6 << 20, ge=4 << 20, le=8 << 30, description="most event bytes waiting in the intake"
    )
    stream_idle_seconds: float = Field(
        30.0,
        ge=1,
        le=_DAY,
        description="a stream, or unary call, that sends nothing for so long is ended",
    )
    unary_max_seconds: float = Field(
        30.0,
        ge=0.1,
        le=_DAY,
        description="a unary call that was not answered within so long is ended, at the latest",
    )
    stream_max_seconds: float = Field(
        3_600.0, ge=1, le=_DAY, description="a stream is answered after so long, complete or not"
    )
    read_threads: int = Field(4, ge=1, le=64, description="threads and connections for reading")

    #: Two, because one leaves a core idle each time that it waits for the database.
    worker_processes: int = Field(
        2, ge=1, le=256, description="processes of `ingest-service worker`"
    )
    worker_threads: int = Field(4, ge=1, le=64, description="threads of each worker process")
    chunk_rows: int = Field(500, ge=1, le=5_000, description="most event keys in one message")
    sweep_seconds: float = Field(1.0, ge=0.01, le=60, description="pause between two sweeps")
    dispatch_grace_seconds: float = Field(
        5.0, ge=0.1, le=_DAY, description="a PENDING event is swept when it is this old"
    )
    lease_seconds: float = Field(
        15.0, ge=2, le=_DAY, description="time a recovery attempt has before it counts as dead"
    )
    max_attempts: int = Field(5, ge=1, le=100, description="attempts before an event is FAILED")
    partition_days_ahead: int = Field(7, ge=1, le=90, description="daily partitions made ahead")
    retention_days: int = Field(
        0,
        ge=0,
        le=_MOST_DAYS,
        description="events older than this are dropped; 0 keeps them;"
        " not less than the next setting, or a resend names an event that is gone",
    )
    idempotency_retention_days: int = Field(
        30,
        ge=1,
        le=_MOST_DAYS,
        description="days for which an idempotency key is remembered, even if its event is gone",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="least level"
    )

    @classmethod
    def load(cls, **overrides: object) -> Self:
        """Read the environment; `overrides` win over it.

        Raises SettingsError with one line that names the variable and what is allowed.
        """
        try:
            return cls(**overrides)  # type: ignore[arg-type]  # pydantic validates them
        except ValidationError as error:
            problems = "; ".join(
                f"set INGEST_{'_'.join(map(str, problem['loc'])).upper()}: {problem['msg']}"
                if problem["loc"]
                else problem["msg"].removeprefix("Value error, ")
                for problem in error.errors(include_input=False, include_url=False)
            )
            raise SettingsError(problems) from None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("set INGEST_TLS_CERT_FILE and INGEST_TLS_KEY_FILE together")
        if int(self.listen.rpartition(":")[2]) > _LARGEST_PORT:
            raise ValueError("set INGEST_LISTEN to a port of 0 to 65535")
        if self.tls_client_ca_file and not self.tls_cert_file:
            raise ValueError("INGEST_TLS_CLIENT_CA_FILE also needs INGEST_TLS_CERT_FILE")
        secret = self.jwt_secret
        if secret is not None and len(secret.get_secret_value().strip()) < MIN_JWT_SECRET_BYTES:
            raise ValueError(f"set INGEST_JWT_SECRET to at least {MIN_JWT_SECRET_BYTES} bytes")
        return self

    @classmethod
    def unknown(cls) -> list[str]:
        """Return the variables that look like settings and are none: somebody meant something."""
        known = {f"INGEST_{name.upper()}" for name in cls.model_fields} | _OTHER_VARIABLES
        found = sorted(n for n in os.environ if n.startswith("INGEST_") and n not in known)
        return [n.encode(errors="backslashreplace").decode() for n in found]

    @property
    def in_the_clear(self) -> bool:
        """Whether the server speaks to other machines without TLS."""
        return self.tls_cert_file is None and not _is_loopback(self.listen)

    def require_tls_off_loopback(self) -> None:
        """Raise SettingsError for a listener in the clear that nobody said is meant."""
        if self.in_the_clear and not self.plaintext:
            raise SettingsError(
                f"{self.listen} is not loopback: set INGEST_TLS_CERT_FILE and INGEST_TLS_KEY_FILE,"
                " or INGEST_PLAINTEXT=true where TLS ends in front of this server"
            )

    def require_database_url(self) -> str:
        """Return the database URL; raises SettingsError when it is not set."""
        if self.database_url is None:
            raise SettingsError("set INGEST_DATABASE_URL, such as postgresql://user@host/ingest")
        url = self.database_url.get_secret_value()
        if not url.startswith(_DATABASES):
            raise SettingsError("set INGEST_DATABASE_URL to postgresql:// or sqlite:///")
        return url

    def require_broker_url(self) -> str:
        """Return the broker URL; raises SettingsError when it is not set."""
        if self.broker_url is None:
            raise SettingsError("set INGEST_BROKER_URL, such as redis://host:6379/0")
        return self.broker_url.get_secret_value()


def _is_loopback(listen: str) -> bool:
    """Whether an address and port are certainly this machine's alone; another name may be any."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
