"""Chooses the module that holds the bulk statements of a database."""

from types import ModuleType

from sqlalchemy import Connection

from eventstore import postgres, sqlite


def bulk(connection: Connection) -> ModuleType:
    """Return `postgres` or `sqlite`; both hold the same functions with the same meaning."""
    return sqlite if connection.dialect.name == "sqlite" else postgres
