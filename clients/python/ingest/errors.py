"""The errors that a client raises; `ingest.status` makes them from what gRPC reports.

IngestError
 ├─ InvalidEvent           INVALID_ARGUMENT    a field is missing or bad
 ├─ AuthenticationFailed   UNAUTHENTICATED     no token, or a bad or expired one
 ├─ PermissionDenied       PERMISSION_DENIED   the token lacks the scope
 ├─ IdempotencyConflict    ALREADY_EXISTS      the key belongs to other content
 ├─ EventNotFound          NOT_FOUND           no such event of this caller
 ├─ RateLimited            RESOURCE_EXHAUSTED  over the caller's rate or quota
 ├─ Unavailable            UNAVAILABLE, DEADLINE_EXCEEDED, UNKNOWN   no answer
 └─ StillPending           -                   a wait ended before the event was final
"""

from collections.abc import Mapping, Sequence

import grpc

from ingest.v1.event_pb2 import FieldViolation


class IngestError(Exception):
    """A call failed; `code` and `reason` say why, the text is for people.

    Every other class here derives from this one. It is raised itself for codes that have no
    class of their own, such as INTERNAL.
    """

    #: The gRPC status code; errors found before anything was sent carry the server's code for it.
    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        field_violations: Sequence[FieldViolation] = (),
        retry_delay: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code or self.code
        #: The service's own word, such as FIELD_INVALID; empty when the service did not answer.
        self.reason = reason
        #: The fields that are at fault, with what is allowed.
        self.field_violations = tuple(field_violations)
        #: Seconds after which the server wants the call repeated; None when it did not say.
        self.retry_delay = retry_delay
        #: What the server added to the reason, such as the scope that is lacking.
        self.metadata = dict(metadata or {})

    def __str__(self) -> str:
        """Everything there is to say, on one line."""
        words = " ".join(filter(None, (self.code.name, self.reason)))
        text = " ".join(f"{words}: {super().__str__()}".split())
        if not self.field_violations:
            return text
        return f"{text} ({describe_violations(self.field_violations)})"

    @property
    def transient(self) -> bool:
        """Whether the same call may succeed later; only such calls are repeated."""
        return False


class InvalidEvent(IngestError):
    """A field of the event, or of the request, is missing or bad: see `field_violations`."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class AuthenticationFailed(IngestError):
    """The token is missing, invalid or expired."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(IngestError):
    """The token lacks the scope that the call needs."""

    code = grpc.StatusCode.PERMISSION_DENIED


class IdempotencyConflict(IngestError):
    """The idempotency key was used before for other content."""

    code = grpc.StatusCode.ALREADY_EXISTS

    @property
    def event_id(self) -> str:
        """The event that holds the key; empty when the server did not say."""
        return self.metadata.get("event_id", "")


class EventNotFound(IngestError):
    """The caller has no such event."""

    code = grpc.StatusCode.NOT_FOUND


class RateLimited(IngestError):
    """The caller is over its rate or quota, and the retries did not outlast that."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    @property
    def transient(self) -> bool:
        """Always: the server named a delay."""
        return True


class Unavailable(IngestError):
    """No answer came, and the retries did not outlast that.

    A submit may or may not have been stored: submit it again with the same idempotency key.
    """

    code = grpc.StatusCode.UNAVAILABLE

    @property
    def transient(self) -> bool:
        """Always."""
        return True


class StillPending(IngestError):
    """The event did not reach a final status while it was waited for."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


def describe_violations(violations: Sequence[FieldViolation]) -> str:
    """Say on one line what is wrong with which fields."""
    return "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
