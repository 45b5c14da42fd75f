"""Brings a database to the schema of this version, by Alembic, one process at a time."""

from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.runtime.environment import NameFilterParentNames, NameFilterType
from sqlalchemy import Connection, text

from eventstore.engine import build_engine
from eventstore.inspection import ENCODING
from eventstore.schema import REVISION, metadata
from eventstore.settings import SettingsError

#: Any number, the same in every process that migrates one database.
_MIGRATION_LOCK = 0x1A6E58


def upgrade(url: str) -> None:
    """Apply the migrations that are missing; a second process waits, then finds nothing to do.

    Nor has it anything to do where a later version was.

    Raises SettingsError for a database that cannot hold every event.
    """
    engine = build_engine(url, name="ingest-migrate", pool_size=1, guarded=False)
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                _require_encoding(connection)
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK}
                )
            if _is_later(MigrationContext.configure(connection).get_current_revision()):
                return  # this version works with it, and must be able to come back
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
            at = context.get_current_revision()
            if _is_later(at):
                return []
            behind = [] if at == REVISION else [f"schema is at revision {at}, not {REVISION}"]
            return behind + [str(change) for change in compare_metadata(context, metadata)]
    finally:
        engine.dispose()


def _is_later(revision: str | None) -> bool:
    return revision is not None and revision > REVISION


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
