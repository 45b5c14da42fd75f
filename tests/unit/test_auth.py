"""TokenVerifier and its keys: each rule of RFC 8725, the memory of verified tokens, JWK Sets."""

import asyncio
import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from eventstore.settings import Settings, SettingsError
from ingest_service import auth
from ingest_service.auth import (
    LEEWAY,
    MAX_TOKEN,
    SingleKey,
    TokenVerifier,
    build_key_source,
    issue_token,
)
from ingest_service.errors import TokenExpired, TokenMissing, Unauthenticated
from ingest_service.jwks import JwkSet, JwksFile, JwksUrl
from ingest_service.principal import Principal
from ingest_service.revocation import Revocations
from tests.hostile.bad_tokens import (
    Sign,
    assemble,
    bad_tokens,
    eddsa,
    es256,
    hs256,
    rs256,
    strange_kids,
    text,
)
from tests.kit.tokens import SECRET, claims, make_token

NOBODY_REVOKED = Revocations(None)


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("INGEST_"):
            monkeypatch.delenv(name)


def settings_of(**values: Any) -> Settings:
    return Settings(**({"jwt_secret": SECRET} | values))


def verifier_of(revocations: Revocations = NOBODY_REVOKED, **values: Any) -> TokenVerifier:
    settings = settings_of(**values)
    return TokenVerifier(settings, build_key_source(settings), revocations)


def bearer(token: str) -> list[str | bytes]:
    return [f"Bearer {token}"]


def is_refused(verifier: TokenVerifier, token: str) -> bool:
    """Whether a token is refused, and by nothing but the one kind of exception."""
    try:
        verifier.authenticate(bearer(token))
    except Unauthenticated:
        return True
    return False


class Signer(NamedTuple):
    """An algorithm with a key pair."""

    algorithm: str
    sign: Sign
    private: Any
    jwk: dict[str, Any]

    @property
    def pem(self) -> bytes:
        """The public key."""
        made: bytes = self.private.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        return made

    def token(self, **headers: Any) -> str:
        """A good token."""
        return make_token(key=self.private, algorithm=self.algorithm, headers=headers)


def make_signer(algorithm: str) -> Signer:
    if algorithm == "RS256":
        private = rsa.generate_private_key(65_537, 2_048)
        jwk = RSAAlgorithm.to_jwk(private.public_key(), as_dict=True)
        return Signer(algorithm, rs256(private), private, jwk)
    if algorithm == "ES256":
        curve = ec.generate_private_key(ec.SECP256R1())
        jwk = ECAlgorithm.to_jwk(curve.public_key(), as_dict=True)
        return Signer(algorithm, es256(curve), curve, jwk)
    edwards = ed25519.Ed25519PrivateKey.generate()
    jwk = OKPAlgorithm.to_jwk(edwards.public_key(), as_dict=True)
    return Signer(algorithm, eddsa(edwards), edwards, jwk)


SIGNERS = {algorithm: make_signer(algorithm) for algorithm in ("RS256", "ES256", "EdDSA")}


def verifier_by_pem(algorithm: str, pem: bytes, folder: Path) -> TokenVerifier:
    file = folder / "public.pem"
    file.write_bytes(pem)
    return verifier_of(jwt_algorithm=algorithm, jwt_secret=None, jwt_public_key_file=file)


def verifier_by_set(algorithm: str, folder: Path, *entries: Any) -> TokenVerifier:
    file = folder / "keys.json"
    file.write_text(json.dumps({"keys": entries}))
    return verifier_of(jwt_algorithm=algorithm, jwt_secret=None, jwt_jwks_file=file)


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

    def key_for(self, kid: str | None) -> Any:
        self.asked += 1
        return self.key


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
    revocations.look()

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


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "1", "null", '"jti"', '{"jti": 1}', '{"jti": null}', '{"jti": "stolen"}'),
        *('{"jti": {"a": 1}}', '{"issued_before": []}', '{"issued_before": {"alice": "soon"}}'),
        *('{"issued_before": {"alice": Infinity}}', '{"issued_before": {"alice": null}}'),
        *('{"issued_before": {"alice": true}}', '{"issued_before": {"alice": 1.9}}'),
        '{"issued_before": {"alice": "1795446330"}}',
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
    revocations.look()
    assert revocations.cover("stolen", "alice", int(time.time()))


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

    assert source.key_for("a") is not None
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
