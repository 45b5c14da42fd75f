"""What was sent to one database, and whether its rows are that: each event once, and unaltered."""

import json
from collections import Counter
from contextlib import suppress

from benchmarks.corpus import Corpus, corpus
from benchmarks.database import Database
from tests.kit.processes import Process
from tests.kit.waiting import eventually

# PostgreSQL itself writes both sides as JSONB, so that spaces and the order of keys do not matter.
_COMPARED = """
WITH sent AS (
  SELECT s.type, s.source, md5(s.payload::jsonb::text) AS payload, sum(s.times) AS times
  FROM unnest(%s::text[], %s::text[], %s::text[], %s::bigint[]) AS s (type, source, payload, times)
  GROUP BY 1, 2, 3
), stored AS (
  SELECT type, source, md5(payload::text) AS payload, count(*) AS times
  FROM events GROUP BY 1, 2, 3
)
SELECT coalesce(sum(greatest(coalesce(sent.times, 0) - coalesce(stored.times, 0), 0)), 0),
       coalesce(sum(greatest(coalesce(stored.times, 0) - coalesce(sent.times, 0), 0)), 0)
FROM sent FULL JOIN stored USING (type, source, payload)
"""
# The primary key forbids this within a partition; here it is looked for in all of them, and
# whoever the user is.
_TWICE = """
SELECT count(*) FROM (SELECT FROM events GROUP BY id HAVING count(*) > 1) AS twice
"""
# Each key must name an event of its own that is there.
_KEYS = """
SELECT count(*), count(DISTINCT e.id)
FROM idempotency_keys k LEFT JOIN events e ON e.user_id = k.user_id AND e.id = k.event_id
"""
_TOUCHED = "SELECT count(*) FROM events WHERE status <> 1 OR attempts <> 0"


class Sent:
    """How often each event of each corpus was sent."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._times: Counter[tuple[str, int]] = Counter()
        self._keys = 0

    def note(self, source: Corpus, events: int, *, times: int = 1, keyed: bool = False) -> None:
        """Note `times` bodies, each of the first `events` events that the corpus's cycle yields."""
        self._keys += events * times * keyed
        rounds, rest = divmod(events, len(source.events))
        for index in range(len(source.events)):
            self._times[source.name, index] += times * (rounds + (index < rest))

    def faults(
        self, database: Database, *, worker: Process | None = None, refused: int = 0
    ) -> tuple[str, ...]:
        """Compare the rows with what was sent; one text for each thing that is wrong.

        With a worker every event must be final, and the worker must have made it so exactly once;
        without one nothing may have touched the events. So many as are known to be refused may
        lack.
        """
        total = self._times.total()
        found = list(database.faults(total - refused, processed=worker is not None))
        sent = [(corpus(name).events[index], times) for (name, index), times in self._times.items()]
        lacking, surplus = database.query(
            _COMPARED,
            (
                [event.type for event, _ in sent],
                [event.source for event, _ in sent],
                [event.payload_json for event, _ in sent],
                [times for _, times in sent],
            ),
        )[0]
        if lacking > refused or surplus:
            found.append(f"not as sent: {lacking} events lack, {surplus} are too many or altered")
        if twice := database.query(_TWICE)[0][0]:
            found.append(f"ids used twice: {twice}")
        keys, named = database.query(_KEYS)[0]
        if not keys == named == self._keys:
            found.append(f"{self._keys} keys sent, {keys} stored, which name {named} events")
        if worker is None:
            if touched := database.query(_TOUCHED)[0][0]:
                found.append(f"touched with no worker: {touched}")
        elif (written := _written(worker, total)) != total:
            found.append(f"made final {written} times for {total} events")
        return tuple(found)


def _written(worker: Process, expected: int) -> int:
    """Return the rows that the worker's statements made final: the sum over its log.

    A row that was made final twice would count twice.
    """

    def counted() -> int:
        lines = (json.loads(line) for line in worker.output().splitlines() if "_processed" in line)
        return sum(line["count"] for line in lines if line.get("event") == "event_processed")

    with suppress(AssertionError):
        # The lines pass through a pipe of Dramatiq's.
        eventually(lambda: counted() >= expected, timeout=5, interval=0.2)
    return counted()
