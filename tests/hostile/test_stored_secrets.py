"""What the database holds: events as they were sent, and no secret of whoever sent or keeps it."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text

from tests.hostile.canaries import DATABASE, PAYLOAD, SECRET, TOKEN, leaks, with_password
from tests.hostile.test_secrets import heard, strangers
from tests.kit.caller import Caller, event
from tests.kit.server import Service, closing_engine, running, settings_for
from tests.kit.tokens import make_token

#: An event's text is the sender's own; these are not part of any event.
NOT_STORED = (DATABASE, SECRET, TOKEN)
TABLES = """
SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables
WHERE schemaname NOT IN ('pg_catalog', 'information_schema')
"""


def kept(url: str) -> str:
    """Everything that a database holds, as text: each column of each table, or the file's bytes."""
    if url.startswith("sqlite"):
        file = Path(urlsplit(url).path[1:])
        files = sorted(file.parent.glob(f"{file.name}*"))
        return "".join(file.read_bytes().decode("latin-1") for file in files)
    with closing_engine(url) as engine, engine.connect() as connection:
        tables = connection.execute(text(TABLES)).scalars().all()
        return "".join(
            row
            for table in tables
            # Names from the catalogue, quoted there.
            for row in connection.execute(text(f"SELECT t::text FROM {table} t")).scalars()  # noqa: S608
        )


@pytest.fixture
def server(store_url: str, broker_url: str, tmp_path: Path) -> Iterator[Service]:
    """A server with a secret wherever there can be one."""
    url = store_url if store_url.startswith("sqlite") else with_password(store_url, DATABASE)
    env = settings_for(url, broker_url, JWT_SECRET=SECRET)
    with running(tmp_path / "server", env) as started:
        yield started


def test_the_database_holds_what_was_sent_and_no_secret(server: Service) -> None:
    """After good and bad calls of one user and of strangers, processed, and in the end stopped."""
    alice = Caller(server.channel, make_token("alice", key=SECRET, jti=TOKEN), "alice")
    heard(alice)
    for stranger in strangers(server):
        heard(stranger)
    alice.submit(event(idempotency_key="one that fails", payload="not an object"))
    server.process_all(alice)
    stored = kept(server.database_url)
    assert server.stop() == 0

    for found in (stored, kept(server.database_url)):
        assert PAYLOAD in found, "the control: what was sent is seen"
        assert leaks(found, NOT_STORED) == []
        assert not [part for part in alice.token.split(".")[1:] if part in found]
