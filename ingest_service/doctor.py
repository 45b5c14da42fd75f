"""Looks at everything that a server and a worker need, and says what to do about what is wrong."""

import resource
import stat
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import select

from eventstore import migrations
from eventstore.clock import in_seconds
from eventstore.engine import build_engine
from eventstore.errors import StorageError, storage_errors
from eventstore.inspection import DatabaseFacts, inspect_database, inspect_file
from eventstore.settings import Settings, SettingsError
from ingest_service.auth import build_key_source
from ingest_service.jwks import JwkSet
from ingest_service.revocation import Revocations

_LEAST_VERSION = 150_000
#: Seconds that the clocks of this machine and of the database may differ.
_CLOCK_DIFFERENCE = 2.0
_LEAST_PARTITIONS = 2
#: Seconds for which the oldest pending event may be due.
_MOST_OVERDUE = 30.0
#: Open files: one for each connection, and some.
_LEAST_FILES = 4_096


class Verdict(Enum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(NamedTuple):
    """One line of the report."""

    check: str
    verdict: Verdict
    text: str


#: Returns what is wrong with the broker, empty for nothing; raises when it does not answer.
BrokerCheck = Callable[[str], str]


def examine(
    settings: Settings, check_broker: BrokerCheck, *, allow_unsafe_durability: bool
) -> Iterator[Finding]:
    """Yield the findings, one for each check."""
    yield from _database(settings, allow_unsafe_durability=allow_unsafe_durability)
    yield _retention(settings)
    yield _broker(settings, check_broker)
    yield _keys(settings)
    yield _listener(settings)
    yield from _tls_key(settings)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield _finding("open files", files >= _LEAST_FILES, f"{files}", "raise it with `ulimit -n`")


def _database(settings: Settings, *, allow_unsafe_durability: bool) -> Iterator[Finding]:
    try:
        url = settings.require_database_url()
        engine = build_engine(url, name="ingest-doctor", pool_size=1)
    except (SettingsError, ValueError) as error:
        yield Finding("database", Verdict.FAIL, str(error))
        return
    file = engine.url.database
    if engine.dialect.name == "sqlite" and file and not Path(file).exists():
        # To connect would make it.
        yield Finding("database", Verdict.FAIL, "no such file: check INGEST_DATABASE_URL")
        return
    try:
        # With transactions it would keep writers of SQLite waiting while it looks.
        looking = engine.execution_options(isolation_level="AUTOCOMMIT")
        with storage_errors(), looking.connect() as connection:
            asked = time.time()
            told = connection.execute(select(in_seconds(0))).scalar_one()
            ahead = (told - datetime.fromtimestamp(asked, UTC)).total_seconds()
            yield Finding("database", Verdict.OK, f"{connection.dialect.name} answers")
            yield _finding(
                "clock",
                abs(ahead) < _CLOCK_DIFFERENCE,
                f"{ahead:+.3f} s",
                "run NTP on both",
            )
            current = migrations.is_current(connection)
            yield _finding(
                "schema", current, "current" if current else "old",
                "run `ingest-service migrate`", fail=True,
            )  # fmt: skip
            if current and connection.dialect.name == "postgresql":
                facts = inspect_database(connection)
                yield from _postgres(
                    facts, settings, allow_unsafe_durability=allow_unsafe_durability
                )
            elif current:
                yield from _file(*inspect_file(connection))
    except StorageError as error:
        yield Finding("database", Verdict.FAIL, f"{error}: check INGEST_DATABASE_URL")
    finally:
        engine.dispose()


def _file(journal: str, damage: str) -> Iterator[Finding]:
    yield _finding(
        "journal", journal == "wal", journal,
        "put the file on a local disk: without WAL readers and writers block each other",
    )  # fmt: skip
    yield _finding(
        "file", damage == "ok", "sound" if damage == "ok" else damage,
        "take a copy of the file, then `sqlite3 FILE .recover`", fail=True,
    )  # fmt: skip


def _postgres(
    facts: DatabaseFacts, settings: Settings, *, allow_unsafe_durability: bool
) -> Iterator[Finding]:
    yield _finding(
        "version", facts.version >= _LEAST_VERSION, f"{facts.version // 10_000}",
        "use PostgreSQL 15 or later", fail=True,
    )  # fmt: skip
    yield _finding(
        "durability", not facts.unsafe, ", ".join(facts.unsafe) + " off" if facts.unsafe else "on",
        "a power cut loses acknowledged events: switch it on", fail=not allow_unsafe_durability,
    )  # fmt: skip
    yield _finding(
        "partitions", facts.partitions_ahead >= _LEAST_PARTITIONS,
        f"{facts.partitions_ahead} from today on", "run a worker, or `ingest-service sweep`",
    )  # fmt: skip
    yield _finding(
        "default partition", not facts.default_partition_used,
        "used" if facts.default_partition_used else "empty",
        "its rows move when their day's partition is made: run `ingest-service sweep`",
    )  # fmt: skip
    # One process: its readers, two writers, the health probe.
    ours = settings.processes * (settings.read_threads + 3) + settings.worker_processes * (
        settings.worker_threads + 2
    )
    free = facts.max_connections - facts.connections
    yield _finding(
        "connections", free > ours, f"{free} free, one server and one worker take {ours}",
        "raise max_connections",
    )  # fmt: skip
    yield _finding(
        "backlog", facts.overdue_seconds < _MOST_OVERDUE,
        f"oldest pending event due for {facts.overdue_seconds:.0f} s",
        "workers are down or behind: look at their logs, start more",
    )  # fmt: skip
    yield _finding(
        "role", not facts.may_create, "may create tables" if facts.may_create else "no DDL",
        "serve and work with a role that may not (docs/threat-model.md)",
    )  # fmt: skip


def _retention(settings: Settings) -> Finding:
    events, keys = settings.retention_days, settings.idempotency_retention_days
    return _finding(
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
        if isinstance(keys, JwkSet):
            keys.load()
    except (SettingsError, OSError, ValueError) as error:
        return Finding("keys", Verdict.FAIL, str(error))
    return Finding("keys", Verdict.OK, settings.jwt_algorithm)


def _listener(settings: Settings) -> Finding:
    try:
        settings.require_tls_off_loopback()
    except SettingsError as error:
        return Finding("listener", Verdict.FAIL, str(error))
    return _finding(
        "listener", not settings.in_the_clear,
        f"{settings.listen}, TLS {'on' if settings.tls_cert_file else 'off'}",
        "tokens travel in the clear from where TLS ends to here: keep that way private",
    )  # fmt: skip


def _tls_key(settings: Settings) -> Iterator[Finding]:
    if settings.tls_key_file is None:
        return
    try:
        mode = stat.S_IMODE(settings.tls_key_file.stat().st_mode)
    except OSError as error:
        text = f"INGEST_TLS_KEY_FILE cannot be read: {error.strerror}"
        yield Finding("TLS key", Verdict.FAIL, text)
        return
    yield _finding(
        "TLS key", not mode & stat.S_IRWXO, f"mode {mode:o}",
        "others on this machine may use it: run `chmod o-rwx` on it",
    )  # fmt: skip


def _finding(check: str, good: bool, text: str, advice: str, *, fail: bool = False) -> Finding:  # noqa: FBT001
    if good:
        return Finding(check, Verdict.OK, text)
    return Finding(check, Verdict.FAIL if fail else Verdict.WARN, f"{text}: {advice}")
