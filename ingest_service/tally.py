"""Log lines of what may happen very often: the first at once, the others counted for a second."""

import asyncio

import structlog

log = structlog.get_logger()

#: Seconds for which the same is counted before it is told again.
_PAUSE = 1.0

Key = tuple[str, tuple[tuple[str, str], ...]]


class Tally:
    """Keeps a flood of refused calls from becoming one of log lines, which cost more than they."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self._counts: dict[Key, int] = {}

    def note(self, event: str, **fields: str) -> None:
        """Log an event with its fields, of which there must be few different ones."""
        key = (event, tuple(fields.items()))
        if key in self._counts:
            self._counts[key] += 1
            return
        self._counts[key] = 0
        log.info(event, **fields, count=1)
        asyncio.get_running_loop().call_later(_PAUSE, self._tell, key)

    def _tell(self, key: Key) -> None:
        event, fields = key
        if count := self._counts.pop(key):
            log.info(event, **dict(fields), count=count)
