"""JWK Sets (RFC 7517): keys by id, read again in the background and never within a call."""

import asyncio
import contextlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import jwt
import structlog

from ingest_service.fetch import fetch
from ingest_service.files import MOST_BYTES, Aside, cause, read_file

log = structlog.get_logger()

#: Seconds that a reading may take as a whole.
_READ_SECONDS = 5.0
#: Entries of a set: each costs a moment of the interpreter.
_MOST_ENTRIES = 1_000
#: Keys of one id: a forged token is tried with each of them.
_MOST_ALIKE = 4
#: Reasons that a line gives for what was left out.
_REASONS = 3
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
#: Roughly: for what is beyond it nobody can be asked.
_URL = re.compile(r"(?ai)[a-z]+://([\w.-]+|\[[\w:.%]+\])(:\d{0,5})?([/?#][!-~]*)?")
_NO_URL = "the URL must be as https://host:443/path, in ASCII without blanks"
#: What kind of key each algorithm takes (RFC 7518, section 6.1).
_KINDS = {"RS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}


class JwksSource(Protocol):
    """Where the text of a JWK Set comes from."""

    #: Seconds between two readings; and the least time, when a token names an unknown key.
    refresh_seconds: float
    least_seconds: float

    def read(self) -> str:
        """Return the text; raises OSError or ValueError. May wait for a network."""


class JwksFile:
    """A file, which an operator may replace at any time."""

    refresh_seconds = least_seconds = 1.0

    def __init__(self, path: Path) -> None:
        """Take the path."""
        self._path = path

    def read(self) -> str:
        """Read the file."""
        return read_file(self._path).data.decode()


class JwksUrl:
    """A URL: https, or http on this machine; redirects are not followed."""

    refresh_seconds = 60.0
    least_seconds = 5.0

    def __init__(self, url: str) -> None:
        """Take the URL; raises ValueError for another scheme, and for what is no URL."""
        try:
            parts = urlsplit(url)
            is_url = bool(parts.hostname) and parts.port != 0 and bool(_URL.fullmatch(url))
        except ValueError:
            # Its text quotes the URL, and so perhaps credentials.
            raise ValueError(_NO_URL) from None
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise ValueError("the URL must start with https://")
        if parts.username is not None:
            raise ValueError("the URL must hold no credentials")
        if not is_url:
            raise ValueError(_NO_URL)
        self._url = url

    def read(self) -> str:
        """Fetch the text."""
        return fetch(self._url, _READ_SECONDS, MOST_BYTES).decode()


class _Keys(NamedTuple):
    #: By their id, which several may have: a rotation without ids, say (RFC 7517, section 4.5).
    by_id: dict[str | None, tuple[Any, ...]]
    #: Why others were left out, and how often.
    left_out: Counter[str]

    @property
    def total(self) -> int:
        return sum(map(len, self.by_id.values()))


class JwkSet:
    """The keys of a JWK Set that fit the algorithm.

    When a reading fails, the keys of the last good one stay: an identity provider that is away
    locks nobody out.
    """

    def __init__(self, algorithm: str, source: JwksSource) -> None:
        """Take where keys come from; a file is read at once, and raises when it cannot be used.

        A URL is not fetched before `keep_fresh` runs; until then every token is refused.
        """
        self._algorithm = algorithm
        self._source = source
        self._aside = Aside("jwks")
        self._keys = _Keys({}, Counter())
        self._text: str | None = None
        self._refused: tuple[str | None, str] = (None, "")
        self._problem = ""
        self.version = 0
        self._wanted = asyncio.Event()
        if isinstance(source, JwksFile):
            self.load()

    def keys_for(self, kid: str | None) -> tuple[Any, ...]:
        """Return the keys with this id; of a token without one those without one, or the only."""
        by_id = self._keys.by_id
        if kid is None and len(by_id) == 1:
            return next(iter(by_id.values()))
        keys = by_id.get(kid, ())
        if not keys:
            self._wanted.set()
        return keys

    async def keep_fresh(self) -> None:
        """Read the source again and again, until cancelled; sooner when a key is missed."""
        while True:
            await self.refresh()
            self._wanted.clear()
            await asyncio.sleep(self._source.least_seconds)
            rest = self._source.refresh_seconds - self._source.least_seconds
            # Not asyncio.wait_for: before Python 3.12 a key missed at that moment undoes a cancel.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._wanted.wait()

    def load(self) -> None:
        """Read the source once, and wait for it; raises OSError or ValueError."""
        self._take(*self._aside.wait_for(self._read, _READ_SECONDS))

    async def refresh(self) -> None:
        """Read the source once, for some seconds at most; keep the old keys when that fails."""
        try:
            # What comes later is not taken: it may be older than what the next reading brings.
            self._take(*await self._aside.result(self._read, _READ_SECONDS))
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not be the last time
            # What a key server answers is not put into the log.
            is_file = isinstance(self._source, JwksFile)
            problem = cause(error) if is_file else type(error).__name__
            if problem != self._problem:
                log.warning("jwks_unreadable", error=problem, keys=self._keys.total)
            self._problem = problem
        else:
            self._problem = ""

    def _read(self) -> tuple[str, _Keys]:
        text = self._source.read()
        if text == self._text:
            return text, self._keys
        if text == self._refused[0]:
            raise ValueError(self._refused[1])
        try:
            return text, self._parse(text)
        except ValueError as error:
            # To parse a large one costs everybody a moment: not each second.
            self._refused = text, str(error)
            raise

    def _take(self, text: str, keys: _Keys) -> None:
        if text != self._text:
            self._keys, self._text = keys, text
            self.version += 1
            log.info("jwks_read", keys=keys.total)
            if keys.left_out:
                reasons = dict(keys.left_out.most_common(_REASONS))
                log.warning("jwks_left_out", entries=keys.left_out.total(), reasons=reasons)

    def _parse(self, text: str) -> _Keys:
        """Return the keys that can be used; others are left out (RFC 7517, section 5)."""
        try:
            entries = json.loads(text)["keys"]
        except (ValueError, KeyError, TypeError, RecursionError):
            entries = None
        if not isinstance(entries, list):
            raise ValueError("it is no JWK Set")
        if len(entries) > _MOST_ENTRIES:
            raise ValueError(f"it holds more than {_MOST_ENTRIES} entries")
        keys = _Keys({}, Counter())
        for entry in entries:
            try:
                if self._fits(entry):
                    self._add(keys, entry)
            except _LeftOutError as error:
                keys.left_out[str(error)] += 1
            except Exception as error:  # noqa: BLE001  # each library has its own
                keys.left_out[type(error).__name__] += 1
        if not keys.by_id:
            raise ValueError(f"it holds no key for {self._algorithm}")
        return keys

    def _add(self, keys: _Keys, entry: dict[str, Any]) -> None:
        key = jwt.PyJWK(entry, algorithm=self._algorithm).key
        require_usable(self._algorithm, key)
        alike = keys.by_id.get(entry.get("kid"), ())
        if len(alike) == _MOST_ALIKE:
            raise _LeftOutError(f"more than {_MOST_ALIKE} keys of one kid")
        keys.by_id[entry.get("kid")] = (*alike, key)

    def _fits(self, entry: dict[str, Any]) -> bool:
        """Whether an entry is a key for what we do; others are none of our business."""
        # A member that is null says nothing, as one that is absent.
        entry = {name: value for name, value in entry.items() if value is not None}
        if (
            entry.get("kty") != _KINDS.get(self._algorithm)
            or entry.get("use", "sig") != "sig"
            or entry.get("alg", self._algorithm) != self._algorithm
        ):
            return False
        operations = entry.get("key_ops", ["verify"])
        if not isinstance(operations, list):
            raise _LeftOutError("key_ops is no list")
        if not isinstance(entry.get("kid", ""), str):
            raise _LeftOutError("kid is no text")
        if "d" in entry:
            # It is known to whoever can read the set.
            raise _LeftOutError("a private key")
        return "verify" in operations


class _LeftOutError(Exception):
    """Why an entry is not used."""


def require_usable(algorithm: str, key: Any) -> None:
    """Raise ValueError for a key of another family or curve, or one that is too short."""
    rules = jwt.get_algorithm_by_name(algorithm)
    try:
        problem = rules.check_key_length(rules.prepare_key(key))
    except (jwt.PyJWTError, TypeError):
        raise ValueError(f"it is no key for {algorithm}") from None
    if problem:
        raise ValueError(f"it is too short for {algorithm}")
