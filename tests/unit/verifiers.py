"""Verifiers of tokens for the tests of them, and keys of every family that sign."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
)
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from eventstore.settings import Settings
from ingest_service.auth import (
    TokenVerifier,
    build_key_source,
)
from ingest_service.errors import Unauthenticated
from ingest_service.revocation import Revocations
from tests.hostile.bad_tokens import (
    Sign,
    eddsa,
    es256,
    rs256,
)
from tests.kit.tokens import SECRET, make_token

NOBODY_REVOKED = Revocations(None)


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
