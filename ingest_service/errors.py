"""What a call can be refused for, in two kinds; knows neither gRPC nor SQL.

    IngestError
    |-- Refused                  permanent: the same call will be refused again
    |   |-- FieldInvalid         a field breaks a rule
    |   |-- Unauthenticated      no token, a bad one, or an expired one
    |   |-- ScopeMissing         the token does not allow this call
    |   |-- IdempotencyConflict  the key is taken by other content
    |   `-- EventNotFound        no such event of this user
    |-- RateLimited              transient: this user takes more than its share
    `-- Unavailable              transient: try again after `retry_after` seconds
        |-- Overloaded           the intake, the readers or the room for answers are full
        |-- Draining             this server is about to end
        `-- StorageUnavailable   the database is away

Every class has a `reason`, which is ErrorInfo.reason on the wire and a contract.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

#: Violations that are told of one event, and of one call.
MOST_VIOLATIONS = 20


class Violation(NamedTuple):
    """One field and what is allowed there."""

    field: str
    description: str


class ServerLost(Exception):
    """Nobody listens any more, and nothing can be done about it; the process is to end."""


class IngestError(Exception):
    """A call is refused; the text is for people and never holds input or a library's words."""

    reason: ClassVar[str] = "INTERNAL"
    text: ClassVar[str] = "internal error"

    @property
    def metadata(self) -> dict[str, str]:
        """What a program may want to know besides the reason."""
        return {}


class Refused(IngestError):
    """The same call will be refused again."""


class FieldInvalid(Refused):
    """One or more fields break a rule."""

    reason = "FIELD_INVALID"
    text = "a field is not valid"

    def __init__(self, violations: Sequence[Violation]) -> None:
        """Take every violation found, not only the first."""
        super().__init__(self.text)
        self.violations = violations


class Unauthenticated(Refused):
    """Nobody can tell who is calling; the cause goes to the log, never to the caller."""

    reason = "TOKEN_INVALID"
    text = "authentication failed"

    def __init__(self, cause: str) -> None:
        """Take the cause, for the log."""
        super().__init__(self.text)
        self.cause = cause


class TokenMissing(Unauthenticated):
    """The call carries no bearer token."""

    reason = "TOKEN_MISSING"


class TokenExpired(Unauthenticated):
    """The token was good once."""

    reason = "TOKEN_EXPIRED"


class ScopeMissing(Refused):
    """The token does not carry the scope that the call needs."""

    reason = "SCOPE_MISSING"
    text = "the token lacks a scope"

    def __init__(self, scope: str) -> None:
        """Take the scope that is missing."""
        super().__init__(self.text)
        self.scope = scope

    @property
    def metadata(self) -> dict[str, str]:
        """Name the scope."""
        return {"scope": self.scope}


class IdempotencyConflict(Refused):
    """The idempotency key was used for an event with other content."""

    reason = "IDEMPOTENCY_CONFLICT"
    text = "the idempotency key is taken by an event with other content"

    def __init__(self, event_id: str, index: int) -> None:
        """Take the id of the event that holds the key, and the position in the call."""
        super().__init__(self.text)
        self.event_id = event_id
        self.index = index

    @property
    def metadata(self) -> dict[str, str]:
        """Name the first event, if it is stored, and which event of this call is in conflict."""
        first = {"event_id": self.event_id} if self.event_id else {}
        return {**first, "index": str(self.index)}


class EventNotFound(Refused):
    """There is no such event, or it is another user's: the caller cannot tell which."""

    reason = "EVENT_NOT_FOUND"
    text = "event not found"


class RateLimited(IngestError):
    """One user takes more than it may."""

    reason = "RATE_LIMITED"
    text = "the user's rate is used up"

    def __init__(self, limit: str, retry_after: float) -> None:
        """Take the name of the limit, and the seconds until there is room again."""
        super().__init__(self.text)
        self.limit = limit
        self.retry_after = retry_after


class Unavailable(IngestError):
    """The call may be repeated later."""

    #: Seconds that a client should wait; a stream that breaks says nothing of single events.
    retry_after: ClassVar[float] = 1.0


class Overloaded(Unavailable):
    """More is waiting than this server takes on."""

    reason = "OVERLOADED"
    text = "the server is busy"
    retry_after = 0.2


class Draining(Unavailable):
    """This server ends; another one takes the call."""

    reason = "DRAINING"
    text = "the server is going away"
    retry_after = 0.1


class StorageUnavailable(Unavailable):
    """The database did not answer; whether something was stored is unknown."""

    reason = "STORAGE_UNAVAILABLE"
    text = "storage is unavailable; whether the call took effect is unknown"
