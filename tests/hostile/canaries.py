"""Secrets that stand nowhere else, to be looked for wherever they must not be."""

import base64
from collections.abc import Iterable
from urllib.parse import quote, urlsplit, urlunsplit
from uuid import uuid4


def canary(name: str) -> str:
    """Return a text that stands nowhere else."""
    return f"canary{uuid4().hex}{name}"


DATABASE, BROKER, SECRET = canary("database"), canary("broker"), canary("secret")
PAYLOAD, ATTRIBUTE, EMAIL, TOKEN = (canary(name) for name in ("payload", "attr", "email", "token"))
SECRETS = (DATABASE, BROKER, SECRET, PAYLOAD, ATTRIBUTE, EMAIL, TOKEN)


def leaks(text: str, secrets: Iterable[str] = SECRETS) -> list[str]:
    """Return the secrets that a text holds, in whatever spelling."""
    return [
        secret
        for secret in secrets
        for spelling in (
            secret,
            quote(secret),
            secret.encode().hex(),
            base64.b64encode(secret.encode()).decode().rstrip("=")[:-2],
        )
        if spelling in text
    ]


def with_password(url: str, password: str) -> str:
    """Return a URL with this password; the tests' PostgreSQL lets everybody in."""
    parts = urlsplit(url)
    user = parts.username or ""
    where = f"{user}:{password}@{parts.hostname}:{parts.port}"
    return urlunsplit(parts._replace(netloc=where))
