"""What PostgreSQL plans for the statements of the product, as they are sent."""

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, event


class Plans:
    """Explains every statement that a connection runs.

    Those that begin with `timed` are run for it, and their milliseconds are in `took`.
    """

    def __init__(self, connection: Connection, *, timed: str = "") -> None:
        self.found: list[dict[str, Any]] = []
        self.took: list[float] = []
        self._timed = timed
        self._explaining = False
        event.listen(connection, "before_cursor_execute", self._before)

    def _before(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, *_rest: Any
    ) -> None:
        other = ("EXPLAIN", "PREPARE", "SELECT pg_")
        if not self._explaining and not statement.startswith(other):
            self._explaining = True
            timed = bool(self._timed) and statement.startswith(self._timed)
            analyze = "ANALYZE, " if timed else ""
            cursor.execute(f"EXPLAIN ({analyze}FORMAT JSON) {statement}", parameters)
            plan = cursor.fetchone()[0]
            plan = json.loads(plan) if isinstance(plan, str) else plan
            self.found.append(plan[0]["Plan"])
            if timed:
                self.took.append(plan[0]["Execution Time"])
            self._explaining = False

    def nodes(self) -> Iterator[dict[str, Any]]:
        waiting = list(self.found)
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.get("Plans", [])

    def scans(self) -> list[tuple[str, str]]:
        """How each partition is read."""
        return sorted(
            (node["Relation Name"], node["Node Type"])
            for node in self.nodes()
            if str(node.get("Relation Name", "")).startswith("events")
            and node["Node Type"] != "ModifyTable"
        )
