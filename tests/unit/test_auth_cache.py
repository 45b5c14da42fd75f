"""What is remembered of tokens, and for how long."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from ingest_service import auth
from ingest_service.auth import (
    LEEWAY,
    TokenVerifier,
    build_key_source,
)
from ingest_service.errors import TokenExpired, Unauthenticated
from ingest_service.jwks import JwkSet
from ingest_service.revocation import Revocations
from tests.kit.tokens import SECRET, make_token
from tests.unit.verifiers import (
    NOBODY_REVOKED,
    SIGNERS,
    bearer,
    is_refused,
    make_signer,
    settings_of,
    verifier_of,
)


class Clock:
    """The wall clock as the service reads it, which a test may put forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real, self.ahead = time.time, 0.0
        monkeypatch.setattr(time, "time", lambda: real() + self.ahead)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Keys:
    """A key that a test may take away, and how often it was asked for."""

    version = 0

    def __init__(self) -> None:
        self.key: str | None = SECRET
        self.asked = 0

    def keys_for(self, kid: str | None) -> list[Any]:
        self.asked += 1
        return [self.key] if self.key is not None else []


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def remembering(keys: Keys) -> TokenVerifier:
    return TokenVerifier(settings_of(), keys, NOBODY_REVOKED)


def test_a_verified_token_is_remembered_for_a_minute(
    remembering: TokenVerifier, keys: Keys, clock: Clock
) -> None:
    token = make_token()
    for clock.ahead in (0, 1, 59):
        assert not is_refused(remembering, token)
    assert keys.asked == 1

    clock.ahead = 61
    assert not is_refused(remembering, token)
    assert keys.asked == 2
    keys.key, clock.ahead = None, 130
    assert is_refused(remembering, token)


def test_no_token_is_remembered_beyond_its_end(remembering: TokenVerifier, clock: Clock) -> None:
    now = int(time.time())
    token = make_token(iat=now, exp=now + 5)
    assert not is_refused(remembering, token)

    clock.ahead = 5 + LEEWAY - 2
    assert not is_refused(remembering, token)
    clock.ahead = 5 + LEEWAY + 1
    with pytest.raises(TokenExpired):
        remembering.authenticate(bearer(token))


def test_who_was_let_in_is_asked_again_whether_the_token_still_holds(
    remembering: TokenVerifier, clock: Clock
) -> None:
    """That is what an open stream does with every message."""
    now = int(time.time())
    principal = remembering.authenticate(bearer(make_token(iat=now, exp=now + 5)))
    principal.require_alive()

    clock.ahead = 5 + LEEWAY + 1
    with pytest.raises(TokenExpired):
        principal.require_alive()


def test_a_remembered_token_can_be_revoked(tmp_path: Path) -> None:
    file = tmp_path / "revoked.json"
    file.write_text("{}")
    revocations = Revocations(file)
    verifier = verifier_of(revocations)
    stolen, other = make_token("alice", jti="stolen"), make_token("bob", jti="other")
    principal = verifier.authenticate(bearer(stolen))
    assert not is_refused(verifier, other)

    file.write_text('{"jti": ["stolen"], "issued_before": {"bob": 1}}')
    asyncio.run(revocations.look())

    assert is_refused(verifier, stolen)
    assert not is_refused(verifier, other)
    with pytest.raises(Unauthenticated):
        principal.require_alive()


def test_a_remembered_token_is_verified_again_when_the_keys_change(tmp_path: Path) -> None:
    """A key that is taken out of the set takes its tokens with it."""
    old, new = SIGNERS["ES256"], make_signer("ES256")
    file = tmp_path / "keys.json"
    entry = old.jwk | {"kid": "old"}
    file.write_text(json.dumps({"keys": [entry]}))
    settings = settings_of(jwt_algorithm="ES256", jwt_secret=None, jwt_jwks_file=file)
    source = build_key_source(settings)
    assert isinstance(source, JwkSet)
    verifier = TokenVerifier(settings, source, NOBODY_REVOKED)
    token = old.token(kid="old")
    assert not is_refused(verifier, token)

    file.write_text(json.dumps({"keys": [new.jwk | {"kid": "new"}]}))
    source.load()

    assert is_refused(verifier, token)
    assert not is_refused(verifier, new.token(kid="new"))


def test_only_so_many_tokens_are_remembered(
    remembering: TokenVerifier, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "_CACHE_SIZE", 50)
    tokens = [make_token(f"user-{number}") for number in range(200)]
    for token in tokens:
        assert not is_refused(remembering, token)

    assert len(remembering._cache) == 50
    keys.key = None
    assert not is_refused(remembering, tokens[-1])
    assert is_refused(remembering, tokens[0])


def test_a_refused_token_is_not_remembered(remembering: TokenVerifier, keys: Keys) -> None:
    keys.key = None
    token = make_token()
    assert is_refused(remembering, token)

    keys.key = SECRET
    assert not is_refused(remembering, token)
    assert not is_refused(remembering, make_token(iat=int(time.time()) + LEEWAY - 3))
