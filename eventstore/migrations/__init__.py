"""Brings a database to the schema of this version, by Alembic, one process at a time."""

from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.runtime.environment import NameFilterParentNames, NameFilterType
from sqlalchemy import Connection, text

from eventstore.engine import build_engine
from eventstore.inspection import ENCODING, NUMBER, is_known_or_later
from eventstore.schema import REVISION, metadata
from eventstore.settings import SettingsError

#: Any number, the same in every process that migrates one database.
_MIGRATION_LOCK = 0x1A6E58


def upgrade(url: str) -> None:
    """Apply the migrations that are missing; a second process waits, then finds nothing to do.

    Nor has it anything to do where a later version was. Raises SettingsError for a new database
    that cannot hold every event, and for one that another program migrates.
    """
    engine = build_engine(url, name="ingest-migrate", pool_size=1, guarded=False)
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK}
                )
            heads = MigrationContext.configure(connection).get_current_heads()
            if _are_current(heads):
                return  # one of a later version, too: this one must be able to come back
            if not heads and connection.dialect.name == "postgresql":
                _require_encoding(connection)
            config = Config()
            # Alembic puts values in for what follows a percent sign.
            folder = str(Path(__file__).parent).replace("%", "%%")
            config.set_main_option("script_location", folder)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()


def pending_changes(url: str) -> list[str]:
    """Return what this version misses in the database; empty when nothing, and for a later one."""
    engine = build_engine(url, name="ingest-migrate", pool_size=1)
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection, opts={"include_name": is_ours, "compare_type": True}
            )
            heads = context.get_current_heads()
            is_current = _are_current(heads)
            if is_current and heads != (REVISION,):
                return []
            at = ", ".join(heads) or None
            behind = [] if is_current else [f"schema is at revision {at}, not {REVISION}"]
            return behind + [str(change) for change in compare_metadata(context, metadata)]
    finally:
        engine.dispose()


def _are_current(revisions: tuple[str, ...]) -> bool:
    """Whether these are our revision, or a later one; raises SettingsError for somebody else's."""
    if not all(map(NUMBER.fullmatch, revisions)):
        raise SettingsError(
            "the tables of INGEST_DATABASE_URL are another program's, as its alembic_version says:"
            " name a database or a schema that is for events alone"
        )
    return len(revisions) == 1 and is_known_or_later(revisions[0])


def _require_encoding(connection: Connection) -> None:
    encoding = connection.execute(text("SELECT current_setting('server_encoding')")).scalar_one()
    if encoding != ENCODING:
        raise SettingsError(
            f"the database of INGEST_DATABASE_URL has the encoding {encoding}: make one with"
            f" ENCODING '{ENCODING}' (CREATE DATABASE ... TEMPLATE template0)"
        )


def is_ours(name: str | None, kind: NameFilterType, _parents: NameFilterParentNames) -> bool:
    """Leave the daily partitions, which come and go, out of comparisons."""
    return kind != "table" or name in metadata.tables
