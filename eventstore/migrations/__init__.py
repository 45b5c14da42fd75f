"""Brings a database to the schema of this version, by Alembic, one process at a time."""

from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.runtime.environment import NameFilterParentNames, NameFilterType
from sqlalchemy import text

from eventstore.engine import build_engine
from eventstore.schema import REVISION, metadata

#: Any number, the same in every process that migrates one database.
_MIGRATION_LOCK = 0x1A6E58


def upgrade(url: str) -> None:
    """Apply the migrations that are missing; a second process waits, then finds nothing to do."""
    engine = build_engine(url, name="ingest-migrate", pool_size=1, guarded=False)
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK}
                )
            config = Config()
            # Alembic puts values in for what follows a percent sign.
            folder = str(Path(__file__).parent).replace("%", "%%")
            config.set_main_option("script_location", folder)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()


def pending_changes(url: str) -> list[str]:
    """Return what differs between the database and this version; empty when nothing does."""
    engine = build_engine(url, name="ingest-migrate", pool_size=1)
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection, opts={"include_name": is_ours, "compare_type": True}
            )
            at = context.get_current_revision()
            behind = [] if at == REVISION else [f"schema is at revision {at}, not {REVISION}"]
            return behind + [str(change) for change in compare_metadata(context, metadata)]
    finally:
        engine.dispose()


def is_ours(name: str | None, kind: NameFilterType, _parents: NameFilterParentNames) -> bool:
    """Leave the daily partitions, which come and go, out of comparisons."""
    return kind != "table" or name in metadata.tables
