"""Event ids for rows that no server wrote."""

import time

from ingest_service.ids import EventIds

_ids = EventIds()


def event_id() -> str:
    """Return an id of this millisecond."""
    return next(_ids.take(int(time.time() * 1000), 1))
