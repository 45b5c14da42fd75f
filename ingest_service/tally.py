"""Log lines of what may happen very often: the first at once, the others counted for a second."""

import asyncio
from collections.abc import Callable

import structlog

log = structlog.get_logger()

#: Seconds for which the same is counted before it is told again.
_PAUSE = 1.0

Key = tuple[str, tuple[tuple[str, str], ...]]


class Tally:
    """Keeps a flood of refused calls from becoming one of log lines, which cost more than they."""

    def __init__(self, level: str = "info") -> None:
        """Start with nothing counted; `level` is that of the lines."""
        self._counts: dict[Key, int] = {}
        self._log: Callable[..., object] = getattr(log, level)

    def note(self, event: str, **fields: str) -> None:
        """Log an event with its fields, of which there must be few different ones."""
        key = (event, tuple(fields.items()))
        if key in self._counts:
            self._counts[key] += 1
            return
        self._counts[key] = 0
        self._log(event, **fields, count=1)
        asyncio.get_running_loop().call_later(_PAUSE, self._tell, key)

    def _tell(self, key: Key) -> None:
        event, fields = key
        if count := self._counts.pop(key):
            self._log(event, **dict(fields), count=count)
