"""Verifies tokens with PyJWT; knows no gRPC. Algorithm and key come from settings alone."""

import json
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, Protocol

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.utils import base64url_decode

from eventstore.settings import Settings, SettingsError
from eventstore.values import User
from ingest_service.errors import TokenExpired, TokenMissing, Unauthenticated
from ingest_service.files import read_file
from ingest_service.jwks import JwkSet, JwksFile, JwksUrl, require_usable
from ingest_service.principal import Principal
from ingest_service.revocation import Revocations

#: Seconds that clocks may differ.
LEEWAY = 10
#: Characters of an authorization value.
MAX_TOKEN = 4_096
#: Seconds for which a verified token is not verified again; never beyond its `exp`.
_CACHE_SECONDS = 60.0
_CACHE_SIZE = 10_000
_REQUIRED = ["exp", "iat", "sub", "aud", "iss"]
#: Header parameters by which a token would choose its own key or rules (RFC 8725, section 3.10).
_FORBIDDEN_HEADERS = frozenset({"jku", "jwk", "x5u", "x5c", "crit", "b64", "zip", "enc"})
_TYPES = frozenset({"JWT", "AT+JWT"})
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,255}")
_EMAIL = re.compile(r"[^\x00-\x20\x7f-\x9f\ud800-\udfff]{1,320}")
#: Namespace of user ids; changing it would make everybody somebody else.
_USER_NAMESPACE = uuid.UUID("5f0c9b6e-2a57-4f0e-9d5b-6c1f1f9f5d11")


class KeySource(Protocol):
    """Where the verification key of a token comes from."""

    #: Another number than before when the keys are others; what they verified is verified again.
    version: int

    def keys_for(self, kid: str | None) -> Sequence[Any]:
        """Return the keys of this id, a few at most; never waits for a network."""


class SingleKey:
    """One key for every token: the HS256 secret or a public key."""

    version = 0

    def __init__(self, key: Any) -> None:
        """Take the key."""
        self._key = key

    def keys_for(self, kid: str | None) -> Sequence[Any]:
        """Return the key, whatever id the token names."""
        return (self._key,)


class TokenVerifier:
    """Turns the authorization metadata of a call into a Principal."""

    def __init__(self, settings: Settings, keys: KeySource, revocations: Revocations) -> None:
        """Take what a token must say, where keys come from, and what is revoked."""
        self._settings = settings
        self._keys = keys
        self._revocations = revocations
        self._cache: OrderedDict[str, tuple[Principal, float]] = OrderedDict()
        self._cached_with = keys.version

    def authenticate(self, values: Sequence[str | bytes]) -> Principal:
        """Verify the call's only authorization value.

        Raises TokenMissing, TokenExpired or Unauthenticated; the cause is for the log.
        """
        if not values:
            raise TokenMissing("no authorization metadata")
        value = values[0]
        if len(values) > 1 or not isinstance(value, str) or len(value) > MAX_TOKEN:
            raise Unauthenticated("not one authorization value of at most 4096 characters")
        now = time.time()
        if self._cached_with != self._keys.version:
            self._cache.clear()
            self._cached_with = self._keys.version
        cached = self._cache.get(value)
        if cached is not None and now < cached[1]:
            cached[0].require_alive()
            return cached[0]
        scheme, _, token = value.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise TokenMissing("no bearer token")
        principal = self._verify(token)
        principal.require_alive()
        self._cache[value] = (principal, min(principal.expires_at, now + _CACHE_SECONDS))
        if len(self._cache) > _CACHE_SIZE:
            self._cache.popitem(last=False)
        return principal

    def _verify(self, token: str) -> Principal:
        if "=" in token:
            # PyJWT takes base64 with it; RFC 7515, section 2, leaves it out.
            raise Unauthenticated("padding")
        try:
            header = _strict_json(token.split(".", maxsplit=1)[0])
            _check_header(header)
            claims = self._claims(token, self._keys.keys_for(header.get("kid")))
            # Parsed again, because PyJWT takes names that are repeated, and UTF-16.
            _strict_json(token.split(".")[1])
            return self._principal(claims)
        except Unauthenticated:
            raise
        except jwt.ExpiredSignatureError:
            raise TokenExpired("expired") from None
        except Exception as error:  # noqa: BLE001  # whatever a hostile token provokes
            raise Unauthenticated(type(error).__name__) from None

    def _claims(self, token: str, keys: Sequence[Any]) -> dict[str, Any]:
        """Return what the token claims, verified with the first of the keys that signed it."""
        for number, key in enumerate(keys, 1):
            try:
                return jwt.decode(
                    token,
                    key,
                    algorithms=[self._settings.jwt_algorithm],
                    audience=self._settings.jwt_audience,
                    issuer=self._settings.jwt_issuer,
                    leeway=LEEWAY,
                    options={
                        "require": _REQUIRED,
                        "strict_aud": True,
                        "enforce_minimum_key_length": True,
                    },
                )
            except jwt.InvalidSignatureError:
                if number == len(keys):
                    raise
        raise Unauthenticated("unknown kid")

    def _principal(self, claims: dict[str, Any]) -> Principal:
        subject, expires, issued = claims["sub"], claims["exp"], claims["iat"]
        if type(expires) is not int or type(issued) is not int:
            raise Unauthenticated("exp and iat must be integers")
        if expires - issued > self._settings.jwt_max_ttl_seconds:
            raise Unauthenticated("the token lives too long")
        if not isinstance(subject, str) or not _PRINTABLE.fullmatch(subject):
            raise Unauthenticated("sub must be 1 to 255 characters without control characters")
        email = claims.get("email") or ""
        if email and not (isinstance(email, str) and _EMAIL.fullmatch(email)):
            raise Unauthenticated("email must be an address")
        scope = claims.get("scope", "")
        if not isinstance(scope, str):
            raise Unauthenticated("scope must be a text")
        token_id = claims.get("jti", "")
        if not isinstance(token_id, str):
            raise Unauthenticated("jti must be a text")
        issuer = self._settings.jwt_issuer
        return Principal(
            user=User(
                id=str(uuid.uuid5(_USER_NAMESPACE, f"{issuer}\n{subject}")),
                issuer=issuer,
                subject=subject,
                email=email,
            ),
            scopes=frozenset(scope.split()),
            token_id=token_id,
            issued_at=issued,
            revocations=self._revocations,
            expires_at=float(expires + LEEWAY),
        )


def build_key_source(settings: Settings) -> KeySource:
    """Return the configured keys; raises SettingsError when there are none or they do not fit."""
    given = {
        "INGEST_JWT_SECRET": settings.jwt_secret,
        "INGEST_JWT_PUBLIC_KEY_FILE": settings.jwt_public_key_file,
        "INGEST_JWT_JWKS_FILE": settings.jwt_jwks_file,
        "INGEST_JWT_JWKS_URL": settings.jwt_jwks_url,
    }
    names = [name for name, value in given.items() if value is not None]
    if settings.jwt_algorithm == "HS256":
        if names != ["INGEST_JWT_SECRET"] or settings.jwt_secret is None:
            raise SettingsError("HS256 needs INGEST_JWT_SECRET, and no other key setting")
        secret = settings.jwt_secret.get_secret_value()
        try:
            require_usable("HS256", secret)
        except ValueError as error:
            raise SettingsError(f"INGEST_JWT_SECRET cannot be used: {error}") from None
        return SingleKey(secret)
    if len(names) != 1 or settings.jwt_secret is not None:
        raise SettingsError(
            f"{settings.jwt_algorithm} needs exactly one of INGEST_JWT_PUBLIC_KEY_FILE,"
            " INGEST_JWT_JWKS_FILE and INGEST_JWT_JWKS_URL"
        )
    try:
        if settings.jwt_public_key_file is not None:
            key = load_pem_public_key(read_file(settings.jwt_public_key_file).data)
            require_usable(settings.jwt_algorithm, key)
            return SingleKey(key)
        if settings.jwt_jwks_file is not None:
            return JwkSet(settings.jwt_algorithm, JwksFile(settings.jwt_jwks_file))
        return JwkSet(settings.jwt_algorithm, JwksUrl(settings.jwt_jwks_url or ""))
    except OSError as error:
        # Not the name of the file: somebody may have put the key itself there.
        raise SettingsError(f"{names[0]} cannot be read: {error.strerror}") from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"{names[0]} cannot be used: {error}") from None


def issue_token(
    settings: Settings, *, subject: str, email: str, scopes: Iterable[str], ttl_seconds: int
) -> str:
    """Sign a token with the HS256 secret; raises SettingsError when there is none."""
    if settings.jwt_algorithm != "HS256" or settings.jwt_secret is None:
        raise SettingsError("tokens are signed here only with HS256: set INGEST_JWT_SECRET")
    if not _PRINTABLE.fullmatch(subject):
        raise SettingsError("the subject must be 1 to 255 characters, no control characters")
    if email and not _EMAIL.fullmatch(email):
        raise SettingsError("the e-mail address must be 3 to 320 characters with an @, no blanks")
    now = int(time.time())
    claims = {
        "iss": settings.jwt_issuer,
        "aud": settings.jwt_audience,
        "sub": subject,
        "email": email,
        "scope": " ".join(scopes),
        "iat": now,
        "exp": now + ttl_seconds,
    }
    return jwt.encode(claims, settings.jwt_secret.get_secret_value(), algorithm="HS256")


def _check_header(header: dict[str, Any]) -> None:
    if _FORBIDDEN_HEADERS & header.keys():
        raise Unauthenticated("header parameter not allowed")
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.upper() not in _TYPES:
        raise Unauthenticated("typ must be JWT or at+jwt")
    kid = header.get("kid")
    if kid is not None and not (isinstance(kid, str) and _PRINTABLE.fullmatch(kid)):
        raise Unauthenticated("kid must be a text")


def _strict_json(segment: str) -> dict[str, Any]:
    """Decode one part of a token: UTF-8 only, an object only, and no name twice."""
    text = base64url_decode(segment.encode("ascii")).decode("utf-8", "strict")
    value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    if not isinstance(value, dict):
        raise Unauthenticated("not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise Unauthenticated("a name is repeated")
    return dict(pairs)


def _refuse(_constant: str) -> NoReturn:
    raise Unauthenticated("not JSON")
