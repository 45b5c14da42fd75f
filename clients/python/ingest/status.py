"""The one door where gRPC's errors become `ingest.errors`.

The details of a status are google.rpc messages. They are read with googleapis-common-protos:
it is nothing but those generated messages, needs only protobuf, and spares a copy of them here.
"""

from collections.abc import Iterable
from typing import cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from ingest.errors import (
    AuthenticationFailed,
    EventNotFound,
    IdempotencyConflict,
    IngestError,
    InvalidEvent,
    PermissionDenied,
    RateLimited,
    Unavailable,
)
from ingest.v1.event_pb2 import FieldViolation

#: The metadata key in which gRPC carries a google.rpc.Status.
DETAILS_KEY = "grpc-status-details-bin"

#: The domain of the service's own reasons.
DOMAIN = "ingest"

_CLASSES: dict[grpc.StatusCode, type[IngestError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidEvent,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationFailed,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.ALREADY_EXISTS: IdempotencyConflict,
    grpc.StatusCode.NOT_FOUND: EventNotFound,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
}


def error_from_call(call: grpc.Call) -> IngestError:
    """Make an error from a call that failed.

    Two codes need more than the table. RESOURCE_EXHAUSTED is the caller's rate only when the
    server named a delay; otherwise a message was too large, and will be so again. UNKNOWN
    without a reason of the service is a connection that broke on the way.
    """
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    bad_request = error_details_pb2.BadRequest()
    found = _unpack(call, (info, retry, bad_request))
    ours = info.domain == DOMAIN
    code = call.code()
    delay = retry.retry_delay.ToTimedelta().total_seconds() if retry in found else None
    kind = _CLASSES.get(code, IngestError)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and delay is not None:
        kind = RateLimited
    elif code is grpc.StatusCode.UNKNOWN and not ours:
        kind = Unavailable
    return kind(
        call.details() or "",
        code=code,
        reason=info.reason if ours else "",
        field_violations=[
            FieldViolation(field=violation.field, description=violation.description)
            for violation in bad_request.field_violations
        ],
        retry_delay=delay,
        metadata=info.metadata if ours else None,
    )


def _unpack(call: grpc.Call, wanted: Iterable[Message]) -> list[Message]:
    """Fill the wanted messages from the call's details and answer those that were found.

    Details that cannot be read are left out: the code alone still says enough.
    """
    found: list[Message] = []
    for key, value in call.trailing_metadata() or ():
        if key != DETAILS_KEY:
            continue
        try:
            # A key that ends in -bin has bytes for its value.
            status = status_pb2.Status.FromString(cast("bytes", value))
            found += [m for detail in status.details for m in wanted if detail.Unpack(m)]
        except DecodeError:
            continue
    return found
