"""A commit that was acknowledged survives a power cut, whatever is set for the database."""

from pathlib import Path

import pytest
from sqlalchemy import text

from eventstore.engine import build_engine
from tests.kit.databases import alter_database


@pytest.mark.parametrize("keyed", [False, True])
def test_commits_wait_for_the_disk_whatever_the_database_says(
    database_url: str, keyed: bool
) -> None:
    alter_database(database_url, "SET synchronous_commit = off")
    engine = build_engine(database_url, name="test", pool_size=1, keyed=keyed)
    with engine.connect() as connection:
        found = connection.execute(text("SHOW synchronous_commit")).scalar_one()
    engine.dispose()

    assert found == "on"


def test_commits_of_sqlite_wait_for_the_disk(tmp_path: Path) -> None:
    engine = build_engine(f"sqlite:///{tmp_path / 'ingest.db'}", name="test", pool_size=1)
    with engine.connect() as connection:
        found = connection.execute(text("PRAGMA synchronous")).scalar_one()
    engine.dispose()

    assert found == 2, "FULL"
