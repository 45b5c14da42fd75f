"""The one table that turns exceptions into google.rpc.Status."""

from collections.abc import Iterator, Sequence

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from ingest_service.errors import (
    MOST_VIOLATIONS,
    EventNotFound,
    FieldInvalid,
    IdempotencyConflict,
    IngestError,
    RateLimited,
    ScopeMissing,
    Unauthenticated,
    Unavailable,
    Violation,
)

#: ErrorInfo.domain of every error.
DOMAIN = "ingest"

#: Bytes that field violations may take together: details travel as metadata, in base64, and
#: clients refuse metadata of more than 8 KiB.
_VIOLATION_BYTES = 4_096
#: Seconds after which a client may as well ask again, whatever it was told to wait for.
_LONGEST_RETRY = 86_400.0

_CODES: dict[type[IngestError], grpc.StatusCode] = {
    FieldInvalid: grpc.StatusCode.INVALID_ARGUMENT,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    ScopeMissing: grpc.StatusCode.PERMISSION_DENIED,
    IdempotencyConflict: grpc.StatusCode.ALREADY_EXISTS,
    EventNotFound: grpc.StatusCode.NOT_FOUND,
    RateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    IngestError: grpc.StatusCode.INTERNAL,
}


def to_status(error: IngestError) -> grpc.Status:
    """Return the status, with ErrorInfo and what else belongs to its code (AIP-193)."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    ]
    if isinstance(error, FieldInvalid):
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=violation.field, description=violation.description
                    )
                    for violation in first_violations(error.violations)
                ]
            )
        )
    if isinstance(error, RateLimited):
        violation = error_details_pb2.QuotaFailure.Violation(
            subject="user", description=error.limit
        )
        details.append(error_details_pb2.QuotaFailure(violations=[violation]))
    if isinstance(error, Unavailable | RateLimited):
        delay = Duration()
        delay.FromMilliseconds(max(1, int(min(error.retry_after, _LONGEST_RETRY) * 1000)))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return _status(_code_of(error), error.text, details)


def internal_status(request_id: str) -> grpc.Status:
    """Return INTERNAL with an id that leads to the log line, and nothing else."""
    info = error_details_pb2.ErrorInfo(
        reason=IngestError.reason, domain=DOMAIN, metadata={"request_id": request_id}
    )
    text = f"internal error, request id {request_id}"
    return _status(grpc.StatusCode.INTERNAL, text, [info])


def first_violations(violations: Sequence[Violation]) -> Iterator[Violation]:
    """Yield as many violations as an answer can carry, and at least one."""
    room = _VIOLATION_BYTES
    for violation in violations[:MOST_VIOLATIONS]:
        yield violation
        room -= len(violation.field.encode()) + len(violation.description.encode())
        if room < 0:
            return


def _code_of(error: IngestError) -> grpc.StatusCode:
    return next(_CODES[cls] for cls in type(error).__mro__ if cls in _CODES)


def _status(code: grpc.StatusCode, text: str, details: list[Message]) -> grpc.Status:
    packed = []
    for detail in details:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    number: int = code.value[0]
    return rpc_status.to_status(status_pb2.Status(code=number, message=text, details=packed))
