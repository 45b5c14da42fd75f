"""Who is calling."""

import time
from contextvars import ContextVar
from dataclasses import dataclass

from eventstore.values import User
from ingest_service.errors import ScopeMissing, TokenExpired, Unauthenticated
from ingest_service.revocation import Revocations

WRITE = "events:write"
READ = "events:read"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A caller whose token was verified."""

    user: User
    scopes: frozenset[str]
    #: `jti` and `iat` of the token; the id is empty when it has none.
    token_id: str
    issued_at: int
    revocations: Revocations
    #: Seconds since 1970, leeway included.
    expires_at: float

    def require_scope(self, scope: str) -> None:
        """Raise ScopeMissing unless the token carries the scope."""
        if scope not in self.scopes:
            raise ScopeMissing(scope)

    def require_alive(self) -> None:
        """Raise when the token ran out, or was revoked, since it was verified."""
        if time.time() >= self.expires_at:
            raise TokenExpired("expired during the call")
        if self.revocations.cover(self.token_id, self.user.subject, self.issued_at):
            raise Unauthenticated("revoked")


#: Set for the time of one call.
current_principal: ContextVar[Principal] = ContextVar("current_principal")
