"""Looks at everything that a server and a worker need, and says what to do about what is wrong."""

import resource
from collections.abc import Callable, Iterator
from urllib.error import HTTPError, URLError

from eventstore.settings import Settings, SettingsError
from ingest_service.auth import build_key_source
from ingest_service.doctor_database import examine_database
from ingest_service.doctor_listener import examine_listener
from ingest_service.findings import Finding, Verdict, judged
from ingest_service.jwks import JwkSet
from ingest_service.revocation import Revocations

#: Open files: one for each connection, and some.
_LEAST_FILES = 4_096

#: Returns what is wrong with the broker, empty for nothing; raises when it does not answer.
BrokerCheck = Callable[[str], str]


def examine(
    settings: Settings, check_broker: BrokerCheck, *, allow_unsafe_durability: bool
) -> Iterator[Finding]:
    """Yield the findings, one for each check."""
    if unknown := settings.unknown():
        text = f"{', '.join(unknown)}: no such setting, the README lists them"
        yield Finding("settings", Verdict.WARN, text)
    yield from examine_database(settings, allow_unsafe_durability=allow_unsafe_durability)
    yield _retention(settings)
    yield _broker(settings, check_broker)
    yield _keys(settings)
    yield from examine_listener(settings)
    # The server raises the other limit to this one, if it needs to.
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    enough = files == resource.RLIM_INFINITY or files >= _LEAST_FILES
    yield judged("open files", enough, f"{files}", "raise it with `ulimit -Hn`")


def _retention(settings: Settings) -> Finding:
    events, keys = settings.retention_days, settings.idempotency_retention_days
    return judged(
        "retention", not 0 < events < keys,
        f"events {f'{events} days' if events else 'for good'}, keys {keys} days",
        "a key outlives its event, and a resend gets the id of an event that is gone: set"
        " INGEST_IDEMPOTENCY_RETENTION_DAYS to no more than INGEST_RETENTION_DAYS",
    )  # fmt: skip


def _broker(settings: Settings, check_broker: BrokerCheck) -> Finding:
    if settings.broker_url is None and _is_sqlite(settings):
        return Finding("broker", Verdict.OK, "not needed by `dev`, which SQLite is for")
    try:
        problem = check_broker(settings.require_broker_url())
    except SettingsError as error:
        return Finding("broker", Verdict.FAIL, str(error))
    except Exception as error:  # noqa: BLE001  # clients of different brokers share no base class
        text = f"{type(error).__name__}: check INGEST_BROKER_URL; events wait for the sweeper"
        return Finding("broker", Verdict.FAIL, text)
    return Finding("broker", Verdict.WARN if problem else Verdict.OK, problem or "answers")


def _is_sqlite(settings: Settings) -> bool:
    url = settings.database_url
    return url is not None and url.get_secret_value().startswith("sqlite:")


def _keys(settings: Settings) -> Finding:
    try:
        keys = build_key_source(settings)
        Revocations(settings.jwt_revocation_file)
    except SettingsError as error:
        return Finding("keys", Verdict.FAIL, str(error))
    try:
        # Of a file this was done above.
        if isinstance(keys, JwkSet) and settings.jwt_jwks_url is not None:
            keys.load()
    except (OSError, ValueError) as error:
        text = (
            f"{_reason(error)}: check that INGEST_JWT_JWKS_URL is your identity provider's JWK Set,"
            " and that it can be reached from here"
        )
        return Finding("keys", Verdict.FAIL, text)
    return Finding("keys", Verdict.OK, settings.jwt_algorithm)


def _reason(error: Exception) -> str:
    """Return why a URL could not be read, without words of whoever answered."""
    if isinstance(error, HTTPError):
        return f"HTTP status {error.code}"
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, OSError):
        return reason.strerror or type(reason).__name__
    return str(reason)
