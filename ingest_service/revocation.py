"""Tokens that were good and shall not be any more: a file, read again as soon as it changes."""

import asyncio
import json
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from eventstore.settings import SettingsError
from ingest_service.files import Aside, cause, read_file

log = structlog.get_logger()

#: Seconds between two looks at the file; with the reading, a revocation is in force within five.
_LOOK_SECONDS = 1.0
#: The last second of the year 9999; whoever writes milliseconds is told so.
_LAST_SECOND = 253_402_300_799
#: Characters of a subject that a message quotes.
_QUOTED = 80

_Stamp = tuple[int, int, int]


class _Revoked(NamedTuple):
    ids: frozenset[str] = frozenset()
    issued_before: dict[str, int] = {}  # noqa: RUF012  # it is never written to


class Revocations:
    """Which tokens are revoked: by id (`jti`), or by subject and time of issue (`iat`).

    The file is one JSON object: `{"jti": ["..."], "issued_before": {"alice": 1732370000, "*": 0}}`.
    A subject's tokens that were issued before its time are revoked; `*` stands for every subject.
    """

    def __init__(self, path: Path | None) -> None:
        """Read the file; raises SettingsError when it cannot be used. None revokes nothing."""
        self._path = path
        self._aside = Aside("revocations")
        self._stamp: _Stamp | None = None
        self._refused: tuple[_Stamp | None, str] = (None, "")
        self._problem = ""
        self._revoked = _Revoked()
        if path is not None:
            try:
                self._take(self._aside.wait_for(self._read))
            except (OSError, ValueError) as error:
                name = "INGEST_JWT_REVOCATION_FILE"
                raise SettingsError(f"{name} cannot be used: {cause(error)}") from None

    def cover(self, token_id: str, subject: str, issued_at: int) -> bool:
        """Whether a token is revoked now."""
        ids, issued_before = self._revoked
        if not ids and not issued_before:
            return False
        cutoff = max(issued_before.get(subject, 0), issued_before.get("*", 0))
        return token_id in ids or issued_at < cutoff

    async def keep_fresh(self) -> None:
        """Look at the file again and again, until cancelled."""
        while self._path is not None:
            await asyncio.sleep(_LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Read the file if it changed; what was revoked stays revoked when it cannot be used.

        A file that cannot be used is told once, until it is another mistake or a good file.
        """
        try:
            # What comes later is not taken: it may be older than what the next look brings.
            self._take(await self._aside.result(self._read))
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not be the last look
            # Read it again even if it is put back as it was, so that this is told too.
            self._stamp = None
            if cause(error) != self._problem:
                self._problem = cause(error)
                ids, subjects = map(len, self._revoked)
                log.warning(
                    "revocations_unreadable", error=self._problem, ids=ids, subjects=subjects
                )

    def _read(self) -> tuple[_Stamp, _Revoked] | None:
        """Return what the file says, or None when it is the one that was read last."""
        if self._path is None:
            return None
        status = self._path.stat()
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp == self._stamp:
            return None
        if stamp == self._refused[0]:
            raise ValueError(self._refused[1])
        content = read_file(self._path)
        try:
            return content.stamp, _parse(content.data.decode())
        except (ValueError, RecursionError) as error:
            # To parse a large one costs everybody a moment: not each second.
            self._refused = content.stamp, cause(error)
            raise ValueError(self._refused[1]) from error

    def _take(self, new: tuple[_Stamp, _Revoked] | None) -> None:
        if new is not None:
            self._stamp, self._revoked = new
            self._problem = ""
            ids, subjects = map(len, self._revoked)
            log.info("revocations_read", ids=ids, subjects=subjects)


def _parse(text: str) -> _Revoked:
    """Return what is revoked; a mistake in the file must not revoke nothing."""
    content: Any = json.loads(text, object_pairs_hook=_once)
    if not isinstance(content, dict) or content.keys() - {"jti", "issued_before"}:
        raise ValueError("it is not an object of jti and issued_before")
    ids, issued_before = content.get("jti", []), content.get("issued_before", {})
    if not isinstance(ids, list) or not isinstance(issued_before, dict):
        raise ValueError("jti must be a list, and issued_before an object")
    for index, token_id in enumerate(ids):
        if not isinstance(token_id, str) or not token_id:
            raise ValueError(f"jti[{index}] must be a text that is not empty")
    for subject, moment in issued_before.items():
        if not subject:
            raise ValueError("a subject of issued_before is empty")
        # Not isinstance: true is an int in Python, and would be the first second of 1970.
        if type(moment) is not int or not 0 <= moment <= _LAST_SECOND:
            raise ValueError(
                f"issued_before of {subject[:_QUOTED]!r} must be whole seconds since 1970"
            )
    return _Revoked(frozenset(ids), issued_before)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; of a name that is repeated JSON's reader would keep the last alone."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name is repeated")
    return dict(pairs)
