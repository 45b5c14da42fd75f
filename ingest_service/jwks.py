"""JWK Sets (RFC 7517): keys by id, read again in the background and never within a call."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import jwt
import structlog

from ingest_service.fetch import fetch

log = structlog.get_logger()

T = TypeVar("T")
_Keys = dict[str | None, Any]

#: Seconds that a reading may take as a whole, and bytes that it may bring.
_READ_SECONDS = 5.0
_MOST_BYTES = 1 << 20
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
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
        return self._path.read_text()


class JwksUrl:
    """A URL: https, or http on this machine; redirects are not followed."""

    refresh_seconds = 60.0
    least_seconds = 5.0

    def __init__(self, url: str) -> None:
        """Take the URL; raises ValueError for another scheme."""
        parts = urlsplit(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise ValueError("the URL must start with https://")
        if parts.username is not None:
            raise ValueError("the URL must hold no credentials")
        self._url = url

    def read(self) -> str:
        """Fetch the text."""
        return fetch(self._url, _READ_SECONDS, _MOST_BYTES).decode()


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
        self._keys: _Keys = {}
        self._text: str | None = None
        self._is_readable = True
        self.version = 0
        self._wanted = asyncio.Event()
        if isinstance(source, JwksFile):
            self.load()

    def key_for(self, kid: str | None) -> Any:
        """Return the key with this id; a token without one is verified when there is one key."""
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        key = self._keys.get(kid)
        if key is None:
            self._wanted.set()
        return key

    async def keep_fresh(self) -> None:
        """Read the source again and again, until cancelled; sooner when a key is missed."""
        while True:
            await self.refresh()
            self._wanted.clear()
            await asyncio.sleep(self._source.least_seconds)
            rest = self._source.refresh_seconds - self._source.least_seconds
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), rest)

    def load(self) -> None:
        """Read the source once, and wait for it; raises OSError or ValueError."""
        self._take(*self._read())

    async def refresh(self) -> None:
        """Read the source once, for some seconds at most; keep the old keys when that fails."""
        try:
            # What comes later is not taken: it may be older than what the next reading brings.
            self._take(*await asyncio.wait_for(_aside(self._read), _READ_SECONDS))
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not be the last time
            if self._is_readable:
                log.warning("jwks_unreadable", error=type(error).__name__, keys=len(self._keys))
            self._is_readable = False
        else:
            self._is_readable = True

    def _read(self) -> tuple[str, _Keys]:
        text = self._source.read()
        return text, self._keys if text == self._text else self._parse(text)

    def _take(self, text: str, keys: _Keys) -> None:
        if text != self._text:
            self._keys, self._text = keys, text
            self.version += 1
            log.info("jwks_read", keys=len(keys))

    def _parse(self, text: str) -> _Keys:
        """Return the keys that can be used; others are left out (RFC 7517, section 5)."""
        try:
            entries = json.loads(text)["keys"]
        except (ValueError, KeyError, TypeError, RecursionError):
            entries = None
        if not isinstance(entries, list):
            raise ValueError("it is no JWK Set")
        keys: _Keys = {}
        for entry in entries:
            try:
                if self._fits(entry):
                    key = jwt.PyJWK(entry, algorithm=self._algorithm).key
                    require_usable(self._algorithm, key)
                    keys[entry.get("kid")] = key
            except Exception as error:  # noqa: BLE001  # each library has its own
                log.warning("jwk_left_out", error=type(error).__name__)
        if not keys:
            raise ValueError(f"it holds no key for {self._algorithm}")
        return keys

    def _fits(self, entry: dict[str, Any]) -> bool:
        return (
            entry.get("kty") == _KINDS.get(self._algorithm)
            and entry.get("use", "sig") == "sig"
            and "verify" in entry.get("key_ops", ["verify"])
            and entry.get("alg", self._algorithm) == self._algorithm
            and isinstance(entry.get("kid"), str | None)
            # A private key is known to whoever can read the set.
            and "d" not in entry
        )


def _aside(work: Callable[[], T]) -> asyncio.Future[T]:
    """Run in a thread which, unlike those of asyncio, the end of the process does not wait for."""
    done = Future[T]()
    done.set_running_or_notify_cancel()  # so that whoever stops waiting does not take it away

    def run() -> None:
        try:
            done.set_result(work())
        except Exception as error:  # noqa: BLE001  # it is raised where the result is awaited
            done.set_exception(error)

    threading.Thread(target=run, name="jwks", daemon=True).start()
    return asyncio.wrap_future(done)


def require_usable(algorithm: str, key: Any) -> None:
    """Raise ValueError for a key of another family or curve, or one that is too short."""
    rules = jwt.get_algorithm_by_name(algorithm)
    try:
        problem = rules.check_key_length(rules.prepare_key(key))
    except (jwt.PyJWTError, TypeError):
        raise ValueError(f"it is no key for {algorithm}") from None
    if problem:
        raise ValueError(f"it is too short for {algorithm}")
