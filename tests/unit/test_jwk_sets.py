"""JWK Sets: which keys of one are used, and what a set that cannot be used leaves."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from eventstore.settings import SettingsError
from ingest_service.auth import (
    TokenVerifier,
    build_key_source,
)
from ingest_service.jwks import JwkSet, JwksFile, JwksUrl
from tests.hostile.bad_tokens import (
    assemble,
    hs256,
    text,
)
from tests.kit.tokens import claims
from tests.unit.verifiers import (
    NOBODY_REVOKED,
    SIGNERS,
    is_refused,
    make_signer,
    settings_of,
    verifier_by_set,
)

UNFIT: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a key for encrypting": lambda entry: entry | {"use": "enc"},
    "a key for signing only": lambda entry: entry | {"key_ops": ["sign"]},
    "a key for another algorithm": lambda entry: entry | {"alg": "ES512"},
    "a curve that is not known": lambda entry: entry | {"crv": "brainpoolP256r1"},
    "a point that is not on the curve": lambda entry: entry | {"x": entry["y"]},
    "a missing coordinate": lambda entry: {n: v for n, v in entry.items() if n != "y"},
    "a number for a coordinate": lambda entry: entry | {"x": 1},
    "a shared secret": lambda _entry: {"kty": "oct", "k": "c2VjcmV0" * 8, "kid": "a"},
    "a private key": lambda _entry: ECAlgorithm.to_jwk(
        ec.generate_private_key(ec.SECP256R1()), as_dict=True
    ),
    "an id that is a list": lambda entry: entry | {"kid": ["a"]},
    "a text": lambda _entry: "key",
    "a null": lambda _entry: None,
    "nothing": lambda _entry: {},
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_entry_that_cannot_be_used_is_left_out_of_its_set(name: str, tmp_path: Path) -> None:
    """As RFC 7517, section 5, has it; the other keys of the set are used."""
    signer, good = SIGNERS["ES256"], make_signer("ES256")
    unfit = UNFIT[name](signer.jwk | {"kid": "a"})
    verifier = verifier_by_set("ES256", tmp_path, unfit, good.jwk | {"kid": "good"})

    assert not is_refused(verifier, good.token(kid="good"))
    assert is_refused(verifier, signer.token(kid="a"))
    secret = hs256(b"c2VjcmV0" * 8)
    forged = text({"alg": "HS256", "typ": "JWT", "kid": "a"})
    assert is_refused(verifier, assemble(forged, text(claims()), secret))
    with pytest.raises(SettingsError, match="INGEST_JWT_JWKS_FILE"):
        verifier_by_set("ES256", tmp_path, unfit)


def logged(seen: list[Any], event: str) -> list[dict[str, Any]]:
    return [entry for entry in seen if entry["event"] == event]


@pytest.mark.parametrize("kid", [{"kid": "a"}, {"kid": None}, {}], ids=["one id", "null", "none"])
def test_keys_of_one_id_are_all_tried(kid: dict[str, Any], tmp_path: Path) -> None:
    """A rotation that gives its keys no ids, or the same, locks nobody out; a stranger it does."""
    old, new, stranger = (make_signer("ES256") for _ in range(3))
    verifier = verifier_by_set("ES256", tmp_path, old.jwk | kid, new.jwk | kid)
    named = {name: value for name, value in kid.items() if value}

    for signer in (old, new):
        assert not is_refused(verifier, signer.token(**named))
        assert not is_refused(verifier, signer.token())
        assert is_refused(verifier, signer.token(kid="other"))
    assert is_refused(verifier, stranger.token(**named))


def test_a_forged_token_is_tried_with_a_few_keys_and_no_more(tmp_path: Path) -> None:
    signers = [make_signer("ES256") for _ in range(5)]
    with structlog.testing.capture_logs() as seen:
        verifier = verifier_by_set(
            "ES256", tmp_path, *(each.jwk | {"kid": "a"} for each in signers)
        )

    refused = [is_refused(verifier, signer.token(kid="a")) for signer in signers]
    assert refused == [False, False, False, False, True]
    (told,) = logged(seen, "jwks_left_out")
    assert told["reasons"] == {"more than 4 keys of one kid": 1}


@pytest.mark.parametrize("member", ["use", "alg", "key_ops"])
def test_a_member_that_is_null_is_one_that_is_absent(member: str, tmp_path: Path) -> None:
    signer = SIGNERS["ES256"]
    verifier = verifier_by_set("ES256", tmp_path, signer.jwk | {"kid": "a", member: None})

    assert not is_refused(verifier, signer.token(kid="a"))


def test_many_entries_that_cannot_be_used_are_one_line(tmp_path: Path) -> None:
    signer = SIGNERS["ES256"]
    broken = [{"kty": "EC", "kid": str(number)} for number in range(998)]
    with structlog.testing.capture_logs() as seen:
        odd = signer.jwk | {"kid": 5}
        verifier = verifier_by_set("ES256", tmp_path, *broken, odd, signer.jwk | {"kid": "a"})

    assert not is_refused(verifier, signer.token(kid="a"))
    (told,) = logged(seen, "jwks_left_out")
    assert told["entries"] == 999
    assert told["reasons"]["kid is no text"] == 1
    assert len(seen) == 2


def test_a_set_of_too_many_entries_is_refused(tmp_path: Path) -> None:
    broken = [{"kty": "EC", "kid": str(number)} for number in range(1_000)]
    with pytest.raises(SettingsError, match=r"INGEST_JWT_JWKS_FILE .* more than 1000 entries"):
        verifier_by_set("ES256", tmp_path, *broken, SIGNERS["ES256"].jwk | {"kid": "a"})


def test_a_set_that_stays_unusable_is_told_once(tmp_path: Path) -> None:
    """And again when it is another mistake, or one after a good set."""
    file = tmp_path / "keys.json"
    good = json.dumps({"keys": [SIGNERS["ES256"].jwk | {"kid": "a"}]})
    file.write_text(good)
    source = JwkSet("ES256", JwksFile(file))
    with structlog.testing.capture_logs() as seen:
        for content in (
            "{",
            "{",
            '{"keys": [{"kty": "EC"}]}',
            '{"keys": [{"kty": "EC"}]}',
            good,
            "{",
        ):
            file.write_text(content)
            asyncio.run(source.refresh())
        file.unlink()
        os.mkfifo(file)
        asyncio.run(source.refresh())

    assert [entry.get("error") for entry in seen] == [
        "it is no JWK Set",
        "it holds no key for ES256",
        "it is no JWK Set",
        "it is no regular file",
    ]
    assert source.keys_for("a")


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", "1", '{"keys": 1}', '{"keys": null}', '{"keys": []}'),
        *('{"keys": {}}', '{"keys": [[]]}', '{"Keys": []}', "[" * 100_000, "\ufeff{}", "<html/>"),
    ],
    ids=lambda value: value[:20],
)
def test_a_set_that_is_none_leaves_the_last_good_keys(tmp_path: Path, content: str) -> None:
    """While it runs; at the start it stops the start."""
    signer = SIGNERS["ES256"]
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [signer.jwk | {"kid": "a"}]}))
    source = JwkSet("ES256", JwksFile(file))

    file.write_text(content)
    asyncio.run(source.refresh())

    assert source.keys_for("a")
    with pytest.raises(SettingsError, match="INGEST_JWT_JWKS_FILE"):
        build_key_source(settings_of(jwt_algorithm="ES256", jwt_secret=None, jwt_jwks_file=file))


def test_before_the_first_reading_there_is_no_key() -> None:
    """Fail closed: a URL is read in the background, and until then every token is refused."""
    settings = settings_of(
        jwt_algorithm="ES256", jwt_secret=None, jwt_jwks_url="http://127.0.0.1:9/keys"
    )
    verifier = TokenVerifier(settings, build_key_source(settings), NOBODY_REVOKED)

    assert is_refused(verifier, SIGNERS["ES256"].token(kid="a"))
    assert is_refused(verifier, SIGNERS["ES256"].token())


@pytest.mark.parametrize(
    "url",
    [
        *("http://example.org/keys", "http://10.0.0.1/keys", "file:///etc/passwd", "ftp://x/keys"),
        *("http://127.0.0.1@example.org/keys", "http://localhost.example.org/", "data:,{}", "keys"),
        *(
            "http://127.0.0.1.example.org/",
            "//127.0.0.1/keys",
            "http:///keys",
            "HTTP://example.org",
        ),
    ],
)
def test_keys_come_over_tls_or_from_this_machine(url: str) -> None:
    with pytest.raises(ValueError, match="https"):
        JwksUrl(url)


@pytest.mark.parametrize(
    "url",
    [
        *("https://", "https:///keys", "https://:443/keys", "https://a b/keys", "https://a/k k"),
        *(
            "https://a/\x7f",
            "https://a/ü",
            "https://ü/",
            "https://a:canary/keys",
            "https://a:1canary",
        ),
        *("https://a:443443/", "https://[::1/keys", "https://[::1]canary/"),
    ],
)
def test_what_is_no_url_stops_the_start_and_is_not_quoted(url: str) -> None:
    """It would refuse every token, with a line in the log."""
    settings = settings_of(jwt_algorithm="ES256", jwt_secret=None, jwt_jwks_url=url)

    with pytest.raises(SettingsError, match=r"^INGEST_JWT_JWKS_URL cannot be used: ") as caught:
        build_key_source(settings)

    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "https://a",
            "https://a/",
            "https://a:/",
            "https://a:443",
            "HTTPS://A-b.c_d:443/k?x=%20#y",
        ),
        *("https://[::1]/keys", "http://[::1]:80/", "http://127.0.0.1:8080/a:b@c", "https://a?x"),
    ],
)
def test_any_other_url_is_taken(url: str) -> None:
    JwksUrl(url)
