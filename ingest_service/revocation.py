"""Tokens that were good and shall not be any more: a file, read again as soon as it changes."""

import asyncio
import json
from pathlib import Path
from typing import Any

import structlog

from eventstore.settings import SettingsError

log = structlog.get_logger()

#: Seconds between two looks at the file; with the reading, a revocation is in force within five.
_LOOK_SECONDS = 1.0


class Revocations:
    """Which tokens are revoked: by id (`jti`), or by subject and time of issue (`iat`).

    The file is one JSON object: `{"jti": ["..."], "issued_before": {"alice": 1732370000, "*": 0}}`.
    A subject's tokens that were issued before its time are revoked; `*` stands for every subject.
    """

    def __init__(self, path: Path | None) -> None:
        """Read the file; raises SettingsError when it cannot be used. None revokes nothing."""
        self._path = path
        self._stamp = (0, 0, 0)
        self._ids: frozenset[str] = frozenset()
        self._issued_before: dict[str, int] = {}
        if path is not None:
            try:
                self._read(path)
            except (OSError, ValueError) as error:
                name = "INGEST_JWT_REVOCATION_FILE"
                raise SettingsError(f"{name} cannot be used: {type(error).__name__}") from None

    def cover(self, token_id: str, subject: str, issued_at: int) -> bool:
        """Whether a token is revoked now."""
        if not self._ids and not self._issued_before:
            return False
        cutoff = max(self._issued_before.get(subject, 0), self._issued_before.get("*", 0))
        return token_id in self._ids or issued_at < cutoff

    async def keep_fresh(self) -> None:
        """Look at the file again and again, until cancelled."""
        while self._path is not None:
            await asyncio.sleep(_LOOK_SECONDS)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Read the file if it changed; what was revoked stays revoked when it cannot be used."""
        try:
            if self._path is not None:
                self._read(self._path)
        except (OSError, ValueError) as error:
            log.warning("revocations_unreadable", error=type(error).__name__)

    def _read(self, path: Path) -> None:
        status = path.stat()
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp == self._stamp:
            return
        try:
            ids, issued_before = _parse(path.read_text())
        except (TypeError, OverflowError, RecursionError) as error:
            raise ValueError("not of the form that is asked for") from error
        self._ids, self._issued_before, self._stamp = ids, issued_before, stamp
        log.info("revocations_read", ids=len(ids), subjects=len(issued_before))


def _parse(text: str) -> tuple[frozenset[str], dict[str, int]]:
    """Return ids, and times by subject; a mistake in the file must not revoke nothing."""
    content: Any = json.loads(text, object_pairs_hook=_once)
    if not isinstance(content, dict) or content.keys() - {"jti", "issued_before"}:
        raise ValueError("not an object of jti and issued_before")
    ids, issued_before = content.get("jti", []), content.get("issued_before", {})
    if not isinstance(ids, list) or not isinstance(issued_before, dict):
        raise ValueError("jti must be a list, and issued_before an object")
    # Not isinstance: true is an int in Python, and would be the first second of 1970.
    if any(type(moment) is not int for moment in issued_before.values()):
        raise ValueError("a time must be whole seconds since 1970")
    return frozenset(map(str, ids)), issued_before


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; of a name that is repeated JSON's reader would keep the last alone."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name is repeated")
    return dict(pairs)
