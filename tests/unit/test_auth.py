"""TokenVerifier and its keys: each rule of RFC 8725."""

import asyncio
import json
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from eventstore.settings import SettingsError
from ingest_service.auth import (
    MAX_TOKEN,
    SingleKey,
    TokenVerifier,
    issue_token,
)
from ingest_service.errors import TokenMissing, Unauthenticated
from ingest_service.principal import Principal
from ingest_service.revocation import Revocations
from tests.hostile.bad_tokens import (
    assemble,
    bad_tokens,
    hs256,
    strange_kids,
    text,
)
from tests.kit.tokens import SECRET, claims, make_token
from tests.unit.verifiers import (
    NOBODY_REVOKED,
    SIGNERS,
    bearer,
    is_refused,
    make_signer,
    settings_of,
    verifier_by_pem,
    verifier_by_set,
    verifier_of,
)


def test_no_bad_token_gets_past_a_secret() -> None:
    verifier = verifier_of()

    assert not is_refused(verifier, make_token())
    accepted = [
        name
        for name, token in bad_tokens("HS256", hs256(SECRET.encode()))
        if not is_refused(verifier, token)
    ]
    assert accepted == []


@pytest.mark.parametrize("algorithm", SIGNERS)
def test_no_bad_token_gets_past_a_public_key(algorithm: str, tmp_path: Path) -> None:
    """PEM and JWK Set alike; the key itself as an HMAC secret is among the bad ones."""
    signer = SIGNERS[algorithm]
    as_secret = text({"alg": "HS256", "typ": "JWT"})
    for verifier in (
        verifier_by_pem(algorithm, signer.pem, tmp_path),
        verifier_by_set(algorithm, tmp_path, signer.jwk | {"kid": "a"}),
    ):
        assert not is_refused(verifier, signer.token())
        bad = dict(bad_tokens(algorithm, signer.sign, signer.pem))
        for spelling in (json.dumps(signer.jwk), json.dumps(signer.jwk, separators=(",", ":"))):
            forge = hs256(spelling.encode())
            bad[f"HS256 signed with {spelling}"] = assemble(as_secret, text(claims()), forge)
        assert [name for name, token in bad.items() if not is_refused(verifier, token)] == []


@pytest.mark.parametrize("algorithm", SIGNERS)
def test_a_kid_only_looks_up_a_key(algorithm: str, tmp_path: Path) -> None:
    signer, other = SIGNERS[algorithm], make_signer(algorithm)
    verifier = verifier_by_set(
        algorithm, tmp_path, signer.jwk | {"kid": "a"}, other.jwk | {"kid": "b"}
    )

    assert not is_refused(verifier, signer.token(kid="a"))
    assert not is_refused(verifier, other.token(kid="b"))
    assert is_refused(verifier, signer.token(kid="b"))
    assert is_refused(verifier, signer.token()), "which of the two is not said"
    strange = dict(strange_kids(algorithm, signer.sign))
    assert [name for name, token in strange.items() if not is_refused(verifier, token)] == []


@pytest.mark.parametrize("algorithm", SIGNERS)
@pytest.mark.parametrize("family", SIGNERS)
def test_one_family_of_keys_belongs_to_an_algorithm(
    algorithm: str, family: str, tmp_path: Path
) -> None:
    """A key of another family stops the start; a JWK Set without any other key, too."""
    if algorithm == family:
        return
    with pytest.raises(SettingsError, match="INGEST_JWT_PUBLIC_KEY_FILE"):
        verifier_by_pem(algorithm, SIGNERS[family].pem, tmp_path)
    with pytest.raises(SettingsError, match="INGEST_JWT_JWKS_FILE"):
        verifier_by_set(algorithm, tmp_path, SIGNERS[family].jwk | {"kid": "a"})


def test_a_weak_key_stops_the_start(tmp_path: Path) -> None:
    weak = rsa.generate_private_key(65_537, 1_024)  # noqa: S505  # that is the point
    pem = weak.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(SettingsError, match="INGEST_JWT_PUBLIC_KEY_FILE"):
        verifier_by_pem("RS256", pem, tmp_path)

    curve = ec.generate_private_key(ec.SECP384R1()).public_key()
    pem = curve.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(SettingsError, match="INGEST_JWT_PUBLIC_KEY_FILE"):
        verifier_by_pem("ES256", pem, tmp_path)


def test_a_private_key_in_place_of_the_public_one_stops_the_start(tmp_path: Path) -> None:
    private = SIGNERS["ES256"].private.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    with pytest.raises(SettingsError, match="INGEST_JWT_PUBLIC_KEY_FILE"):
        verifier_by_pem("ES256", private, tmp_path)


def test_a_token_of_another_algorithm_of_the_same_family_is_refused(tmp_path: Path) -> None:
    signer = SIGNERS["RS256"]
    verifier = verifier_by_pem("RS256", signer.pem, tmp_path)

    for algorithm in ("RS384", "RS512", "PS256"):
        assert is_refused(verifier, make_token(key=signer.private, algorithm=algorithm))
    assert is_refused(verifier_of(), make_token(algorithm="HS384", key=SECRET * 2))


@pytest.mark.parametrize(
    "values, kind",
    [
        ([], TokenMissing),
        ([""], TokenMissing),
        (["Bearer"], TokenMissing),
        (["Bearer "], TokenMissing),
        ([make_token()], TokenMissing),
        ([f"Basic {make_token()}"], TokenMissing),
        ([b"Bearer " + make_token().encode()], Unauthenticated),
        ([f"Bearer {make_token()}"] * 2, Unauthenticated),
        (["Bearer " + "x" * MAX_TOKEN], Unauthenticated),
        (["Bearer \ud800.\ud800.\ud800"], Unauthenticated),
        (["Bearer é.é.é"], Unauthenticated),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_one_value_with_one_bearer_token_is_asked_for(
    values: list[str | bytes], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        verifier_of().authenticate(values)


def test_the_longest_token_is_read_and_one_more_character_is_not() -> None:
    verifier = verifier_of()
    room = MAX_TOKEN - len("Bearer ") - len(make_token())
    longest = make_token(pad="x" * (room * 3 // 4 - 20))

    assert MAX_TOKEN - 20 <= len(f"Bearer {longest}") <= MAX_TOKEN
    assert not is_refused(verifier, longest)
    assert is_refused(verifier, make_token(pad="x" * room))


def test_a_user_is_issuer_and_subject_and_nothing_else() -> None:
    def user_id(verifier: TokenVerifier, *subject: str, **others: Any) -> str:
        return verifier.authenticate(bearer(make_token(*subject, **others))).user.id

    here, there = verifier_of(), verifier_of(jwt_issuer="there")
    ids = {
        user_id(here, "alice"),
        user_id(here, "Alice"),
        user_id(here, "alice ", email=""),
        user_id(here, "bob"),
        user_id(there, "alice", iss="there"),
    }

    assert len(ids) == 5
    assert all(uuid.UUID(found).version == 5 for found in ids)
    assert user_id(here, "alice") == user_id(here, "alice", email="", scope="", jti="x")


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "1", "null", '"jti"', '{"jti": 1}', '{"jti": null}', '{"jti": "stolen"}'),
        *('{"jti": {"a": 1}}', '{"issued_before": []}', '{"issued_before": {"alice": "soon"}}'),
        *('{"issued_before": {"alice": Infinity}}', '{"issued_before": {"alice": null}}'),
        *('{"issued_before": {"alice": true}}', '{"issued_before": {"alice": 1.9}}'),
        *('{"issued_before": {"alice": "1795446330"}}', '{"issued_before": {"alice": -1}}'),
        *('{"issued_before": {"alice": 1795446330000}}', '{"issued_before": {"": 1795446330}}'),
        *('{"jti": ["stolen", null]}', '{"jti": [5]}', '{"jti": [["x"]]}', '{"jti": [""]}'),
        *('{"jtis": ["stolen"]}', '{"issued-before": {}}', "[" * 100_000),
    ],
    ids=lambda value: value[:30],
)
def test_a_file_of_revocations_that_says_nothing_clear_is_refused(
    tmp_path: Path, content: str
) -> None:
    """At the start it stops the start; later what was revoked stays revoked."""
    file = tmp_path / "revoked.json"
    file.write_text(content)
    with pytest.raises(SettingsError, match="INGEST_JWT_REVOCATION_FILE"):
        Revocations(file)

    file.write_text('{"jti": ["stolen"]}')
    revocations = Revocations(file)
    file.write_text(content)
    asyncio.run(revocations.look())
    assert revocations.cover("stolen", "alice", int(time.time()))


@pytest.mark.parametrize(
    "content, entry",
    [
        ('{"jti": ["a", "b", null]}', r"jti\[2\]"),
        ('{"issued_before": {"bob": 1, "alice": 1795446330000}}', "issued_before of 'alice'"),
        ('{"issued_before": {"": 1}}', "subject of issued_before"),
    ],
)
def test_the_entry_that_is_a_mistake_is_named(tmp_path: Path, content: str, entry: str) -> None:
    file = tmp_path / "revoked.json"
    file.write_text(content)
    with pytest.raises(SettingsError, match=f"INGEST_JWT_REVOCATION_FILE cannot be used.*{entry}"):
        Revocations(file)


def test_a_secret_signs_what_it_verifies() -> None:
    settings = settings_of()
    token = issue_token(
        settings, subject="alice", email="a@b.c", scopes=("events:read",), ttl_seconds=60
    )
    principal: Principal = verifier_of().authenticate(bearer(token))

    assert (principal.user.subject, principal.user.email) == ("alice", "a@b.c")
    assert principal.scopes == {"events:read"}


@pytest.mark.parametrize(
    "subject, email", [("", ""), ("a\nb", ""), ("a\0", ""), ("x" * 256, ""), ("alice", "a b@c")]
)
def test_no_token_is_signed_that_would_be_refused(subject: str, email: str) -> None:
    with pytest.raises(SettingsError):
        issue_token(settings_of(), subject=subject, email=email, scopes=(), ttl_seconds=60)


def test_an_empty_key_lets_nobody_in() -> None:
    nothing = TokenVerifier(settings_of(), SingleKey(""), NOBODY_REVOKED)
    header = text({"alg": "HS256", "typ": "JWT"})
    unsigned = assemble(text({"alg": "none"}), text(claims()), lambda _signed: b"")

    assert is_refused(nothing, assemble(header, text(claims()), hs256(b"")))
    assert is_refused(nothing, unsigned)
    assert is_refused(nothing, make_token())


@pytest.mark.parametrize("of", ["pem", "jwk"])
def test_a_public_key_is_no_secret(of: str) -> None:
    """Everybody knows it."""
    signer = SIGNERS["RS256"]
    secret = signer.pem.decode() if of == "pem" else json.dumps(signer.jwk)
    with pytest.raises(SettingsError, match="INGEST_JWT_SECRET"):
        verifier_of(jwt_secret=secret)
