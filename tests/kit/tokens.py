"""Tokens as the service wants them, and every claim can be another one."""

import time
from collections.abc import Mapping
from typing import Any

import jwt

#: Signs the tokens of all tests; it guards nothing.
SECRET = "a secret of the tests, and longer than 32 bytes"
SCOPES = "events:write events:read"


def claims(subject: str = "alice", /, **others: Any) -> dict[str, Any]:
    """Return good claims, with these in their place; None leaves one out."""
    now = int(time.time())
    good: dict[str, Any] = {
        "iss": "ingest",
        "aud": "ingest",
        "sub": subject,
        "email": f"{subject}@example.org",
        "scope": SCOPES,
        "iat": now,
        "exp": now + 600,
    }
    return {name: value for name, value in (good | others).items() if value is not None}


def make_token(
    subject: str = "alice",
    /,
    *,
    key: Any = SECRET,
    algorithm: str = "HS256",
    headers: Mapping[str, Any] | None = None,
    **others: Any,
) -> str:
    """Return a signed token with good claims, and these in their place."""
    content = claims(subject, **others)
    return jwt.encode(content, key, algorithm=algorithm, headers=dict(headers or {}))
