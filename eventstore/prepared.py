"""Prepared statements, which psycopg2 does not have: each connection parses and plans one once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection


class Prepared(NamedTuple):
    """A statement of PostgreSQL; parsing and planning take a fifth of the time of a large one.

    The first four parameters of those that look rows up are those of a `Lookup`.
    """

    name: str
    types: str
    text: str

    def run(self, connection: Connection, arguments: Sequence[Any]) -> Any:
        """Execute it, and prepare it first where that has not been done."""
        execute = self.call(connection, len(arguments))
        return connection.exec_driver_sql(execute, tuple(arguments))

    def call(self, connection: Connection, count: int) -> str:
        """Return the statement that executes it with `count` values; it is prepared by then."""
        prepared = connection.info.setdefault("prepared", set())
        if self.name not in prepared:
            try:
                with connection.connection.cursor() as cursor:  # type: ignore[attr-defined]
                    cursor.execute(f"PREPARE {self.name} ({self.types}) AS {self.text}")
            except BaseException:
                # Nobody knows whether the server has it now.
                connection.invalidate()
                raise
            prepared.add(self.name)
        return f"EXECUTE {self.name} ({', '.join(['%s'] * count)})"
