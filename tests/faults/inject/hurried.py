"""Shorter times than the product's own, for a test that would wait them out several times."""

from collections.abc import Callable
from typing import Any


def hurry_keys(seconds: float) -> Callable[[Any], None]:
    """Return a patch of the JWK Sets: how long a reading may take, and four times the pause."""

    def patch(jwks: Any) -> None:
        jwks._READ_SECONDS = seconds
        jwks.JwksUrl.least_seconds = seconds / 4

    return patch
