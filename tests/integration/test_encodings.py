"""Every event comes back as it was sent, whatever encodings somebody else has set."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg2
import pytest

from tests.integration.test_health import health
from tests.integration.test_worker import FAST, start_worker
from tests.kit import forks
from tests.kit.caller import event, refused
from tests.kit.databases import alter_database
from tests.kit.processes import Processes
from tests.kit.proxy import Proxy
from tests.kit.server import Start, running, settings_for
from tests.kit.waiting import eventually

TEXTS = ("Müller", "漢字", "\N{PILE OF POO}")
#: Requests for TLS and for GSSAPI, which come before anything else.
_SSL, _GSS = 80_877_103, 80_877_104


def test_texts_are_utf8_whatever_client_encoding_is_set(
    database_url: str, broker_url: str, start_service: Start, processes: Processes
) -> None:
    """By the environment of both processes, and by the database."""
    alter_database(database_url, "SET client_encoding = 'LATIN1'")
    env = settings_for(database_url, broker_url, **FAST) | {"PGCLIENTENCODING": "LATIN1"}
    server = start_service(env)
    start_worker(processes, env)
    alice = server.caller()
    sent = [event(payload={"page": text}, idempotency_key=text) for text in TEXTS for _ in "12"]

    ids = [receipt.event_id for receipt in alice.batch(sent)]
    ids.append(alice.submit(event(payload={"page": TEXTS[0]})).event_id)

    eventually(lambda: alice.counts() == {"PROCESSED": len(TEXTS) + 1})
    read = [alice.get(event_id).payload["page"] for event_id in ids]
    assert read == [text for text in TEXTS for _ in "12"] + [TEXTS[0]]


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_hold_every_text_is_not_migrated(
    postgres_url: str, encoding: str
) -> None:
    name = f"ingest_test_{uuid4().hex}"
    with closing(psycopg2.connect(postgres_url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(
                f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
            )
            try:
                url = urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
                done = forks.run("migrate", env={"INGEST_DATABASE_URL": url})
                with closing(psycopg2.connect(url)) as made, made.cursor() as looking:
                    looking.execute("SELECT to_regclass('events'), to_regclass('alembic_version')")
                    tables = looking.fetchone()
            finally:
                cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")

    assert done.code == 2
    assert f"has the encoding {encoding}" in done.stderr
    assert "INGEST_DATABASE_URL" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert tables == (None, None)


class _SpeaksLatin1:
    """A PostgreSQL that starts up and says so in French."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _run(self) -> None:
        text = "le système de bases de données se lance".encode("latin-1")
        fields = b"SFATAL\0VFATAL\0C57P03\0M" + text + b"\0\0"
        refusal = b"E" + struct.pack(">i", len(fields) + 4) + fields
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, suppress(OSError, struct.error):
                    while struct.unpack(">ii", connection.recv(8)) in {(8, _SSL), (8, _GSS)}:
                        connection.sendall(b"N")
                    connection.recv(1 << 12)
                    connection.sendall(refusal)


@pytest.fixture
def starting_up() -> Iterator[_SpeaksLatin1]:
    """Such a database."""
    made = _SpeaksLatin1()
    yield made
    made.close()


def test_a_database_that_refuses_in_another_encoding_is_away_and_may_come_back(
    database_url: str, redis_url: str, starting_up: _SpeaksLatin1, tmp_path: Path
) -> None:
    """It is so when the server starts, and later once more."""
    parts = urlsplit(database_url)
    port = parts.port or 5432
    with closing(Proxy(starting_up.port)) as line:
        url = urlunsplit(parts._replace(netloc=parts.netloc.replace(str(port), str(line.port))))
        with running(tmp_path, settings_for(url, redis_url)) as server:
            alice = server.caller()
            for away_from in ("the start", "then on"):
                refusal = refused(alice.submit, event())
                assert refusal.verdict == ("UNAVAILABLE", "STORAGE_UNAVAILABLE"), away_from
                assert health(server) == "NOT_SERVING"

                line.target_port = port
                eventually(lambda: health(server) == "SERVING", timeout=10)
                alice.submit(event())
                alice.batch([event()] * 2)

                line.target_port = starting_up.port
                line.cut()
                eventually(lambda: health(server) == "NOT_SERVING", timeout=10)
            assert "Traceback" not in server.process.stderr()
