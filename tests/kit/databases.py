"""A database of its own for each test, copied from a migrated template."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg2
from psycopg2 import sql


@contextmanager
def fresh_database(server_url: str, template: str = "template1") -> Iterator[str]:
    """Create a database on the server, give its URL, and drop it afterwards."""
    name = f"ingest_test_{uuid4().hex}"
    _execute(server_url, "CREATE DATABASE {} TEMPLATE {}", name, template)
    try:
        yield urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
    finally:
        _execute(server_url, "DROP DATABASE {} WITH (FORCE)", name)


def close_database(server_url: str, url: str) -> str:
    """Cut all connections to a database, allow no more, and return its name: a template now."""
    name = urlsplit(url).path.removeprefix("/")
    _execute(server_url, "ALTER DATABASE {} WITH ALLOW_CONNECTIONS false", name)
    with closing(psycopg2.connect(server_url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
            (name,),
        )
    return name


def alter_database(url: str, change: str) -> None:
    """Change what is set for a database, such as "SET jit = off", and end its other connections."""
    name = urlsplit(url).path.removeprefix("/")
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SET default_transaction_read_only = off")
            cursor.execute(sql.SQL(f"ALTER DATABASE {{}} {change}").format(sql.Identifier(name)))
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )


def _execute(server_url: str, statement: str, *names: str) -> None:
    with closing(psycopg2.connect(server_url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
