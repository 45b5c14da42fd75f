"""Looks at the database of a server and a worker."""

import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from sqlalchemy import select

from eventstore.clock import in_seconds
from eventstore.engine import build_engine, sqlite_file
from eventstore.errors import StorageError, storage_errors
from eventstore.inspection import (
    ENCODING,
    DatabaseFacts,
    inspect_database,
    inspect_file,
    is_current,
    is_writable,
    lacking_rights,
)
from eventstore.settings import Settings, SettingsError
from ingest_service.findings import Finding, Verdict, judged
from ingest_service.newcomer import embedded_url

_LEAST_VERSION = 150_000
#: SQLSTATE, with which storage errors end.
_NO_RIGHT = "42501"
#: Seconds that the clocks of this machine and of the database may differ.
_CLOCK_DIFFERENCE = 2.0
_LEAST_PARTITIONS = 2
#: Bytes free beside a SQLite file: below the first soon, and below the second now, it is full.
_LEAST_SPACE = 1 << 30
_NO_SPACE = 64 << 20
#: Seconds for which the oldest pending event may be due.
_MOST_OVERDUE = 30.0


def examine_database(settings: Settings, *, allow_unsafe_durability: bool) -> Iterator[Finding]:
    """Yield the findings on the database that the settings name."""
    try:
        url = settings.require_database_url()
        engine = build_engine(url, name="ingest-doctor", pool_size=1)
    except (SettingsError, ValueError) as error:
        yield Finding("database", Verdict.FAIL, str(error))
        return
    place = "INGEST_DATABASE_URL"
    if engine.dialect.name == "sqlite":
        if url == embedded_url(settings.data_dir):
            place = "INGEST_DATA_DIR"
        try:
            # To connect would make it, and would not say why it cannot be written to.
            sqlite_file(engine.url).open("r+b").close()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "no name of a file"
            yield Finding("database", Verdict.FAIL, f"{reason}: check {place}")
            return
    try:
        # With transactions it would keep writers of SQLite waiting while it looks.
        looking = engine.execution_options(isolation_level="AUTOCOMMIT")
        with storage_errors(), looking.connect() as connection:
            asked = time.time()
            told = connection.execute(select(in_seconds(0))).scalar_one()
            ahead = (told - datetime.fromtimestamp(asked, UTC)).total_seconds()
            yield Finding("database", Verdict.OK, f"{connection.dialect.name} answers")
            yield judged(
                "clock",
                abs(ahead) < _CLOCK_DIFFERENCE,
                f"{ahead:+.3f} s",
                "run NTP on both",
            )
            if connection.dialect.name == "postgresql":
                yield _rights(lacking_rights(connection))
            current = is_current(connection)
            yield judged(
                "schema", current, "current" if current else "old",
                "run `ingest-service migrate`", fail=True,
            )  # fmt: skip
            yield judged(
                "writes", (writes := is_writable(connection)), "taken" if writes else "read only",
                "name the primary in INGEST_DATABASE_URL, or reset default_transaction_read_only",
                fail=True,
            )  # fmt: skip
            if current and connection.dialect.name == "postgresql":
                facts = inspect_database(connection)
                yield from judge_postgres(
                    facts, settings, allow_unsafe_durability=allow_unsafe_durability
                )
            elif current:
                yield from _file(*inspect_file(connection))
                yield judge_space(shutil.disk_usage(sqlite_file(engine.url).resolve().parent).free)
    except StorageError as error:
        what = "run deploy/roles.sql" if _NO_RIGHT in str(error) else f"check {place}"
        yield Finding("database", Verdict.FAIL, f"{error}: {what}")
    finally:
        engine.dispose()


def _rights(lacks: tuple[str, ...]) -> Finding:
    return judged(
        "rights", not lacks, f"lacks {', '.join(lacks)}" if lacks else "enough",
        "run deploy/roles.sql for the role, as the one that migrates", fail=True,
    )  # fmt: skip


def _file(journal: str, damage: str) -> Iterator[Finding]:
    yield judged(
        "journal", journal == "wal", journal,
        "put the file on a local disk: without WAL readers and writers block each other",
    )  # fmt: skip
    yield judged(
        "file", damage == "ok", "sound" if damage == "ok" else damage,
        "take a copy of the file, then `sqlite3 FILE .recover`", fail=True,
    )  # fmt: skip


def judge_space(free: int) -> Finding:
    """Judge how many bytes are free where a SQLite file is."""
    return judged(
        "disk", free >= _LEAST_SPACE, f"{free >> 20} MiB free",
        "without room nothing is stored: make some beside the file, or move it to another disk",
        fail=free < _NO_SPACE,
    )  # fmt: skip


def judge_postgres(
    facts: DatabaseFacts, settings: Settings, *, allow_unsafe_durability: bool
) -> Iterator[Finding]:
    """Yield the findings on the facts of a PostgreSQL server."""
    yield judged(
        "version", facts.version >= _LEAST_VERSION, f"{facts.version // 10_000}",
        "use PostgreSQL 15 or later", fail=True,
    )  # fmt: skip
    yield judged(
        "encoding", facts.encoding == ENCODING, facts.encoding,
        f"not every event can be stored: make a database with ENCODING '{ENCODING}', and move the"
        " events there", fail=True,
    )  # fmt: skip
    yield judged(
        "durability", not facts.unsafe, ", ".join(facts.unsafe) + " off" if facts.unsafe else "on",
        "a power cut loses acknowledged events: switch it on", fail=not allow_unsafe_durability,
    )  # fmt: skip
    yield judged(
        "partitions", facts.partitions_ahead >= _LEAST_PARTITIONS,
        f"{facts.partitions_ahead} from today on", "run a worker, or `ingest-service sweep`",
    )  # fmt: skip
    yield judged(
        "default partition", not facts.default_partition_used,
        "used" if facts.default_partition_used else "empty",
        "its rows move when their day's partition is made: run `ingest-service sweep`",
    )  # fmt: skip
    # One process: its readers, two writers, the health probe.
    ours = settings.processes * (settings.read_threads + 3) + settings.worker_processes * (
        settings.worker_threads + 2
    )
    free = facts.max_connections - facts.connections
    yield judged(
        "connections", free > ours, f"{free} free, one server and one worker take {ours}",
        "raise max_connections",
    )  # fmt: skip
    yield judged(
        "backlog", facts.overdue_seconds < _MOST_OVERDUE,
        f"oldest pending event due for {facts.overdue_seconds:.0f} s",
        "workers are down or behind: look at their logs, start more",
    )  # fmt: skip
    rights = ["may create tables"] * facts.may_create + ["owns the tables"] * facts.owns_tables
    yield judged(
        "role", not rights, " and ".join(rights) or "no DDL",
        "serve and work with a role that may not (docs/threat-model.md)",
    )  # fmt: skip
