"""What a status becomes."""

import pickle

import grpc
import pytest

from ingest import errors
from ingest.client import IngestClient
from ingest.events import new_event
from ingest.v1.event_pb2 import FieldViolation
from tests.client.fake_service import Failure, FakeService


@pytest.mark.parametrize(
    "code, reason, kind",
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", errors.InvalidEvent),
        (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED", errors.AuthenticationFailed),
        (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING", errors.PermissionDenied),
        (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_CONFLICT", errors.IdempotencyConflict),
        (grpc.StatusCode.NOT_FOUND, "EVENT_NOT_FOUND", errors.EventNotFound),
        (grpc.StatusCode.INTERNAL, "INTERNAL", errors.IngestError),
    ],
)
def test_each_code_has_its_class(
    service: FakeService,
    client: IngestClient,
    code: grpc.StatusCode,
    reason: str,
    kind: type[errors.IngestError],
) -> None:
    service.failures += [Failure(code=code, reason=reason)]
    with pytest.raises(errors.IngestError) as caught:
        client.submit(new_event("a"))
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.reason) == (code, reason)
    assert not caught.value.transient


def test_field_violations_are_told(service: FakeService, client: IngestClient) -> None:
    violations = {"event.type": "1 to 255 bytes", "event.source": "no control characters"}
    service.failures += [
        Failure(
            code=grpc.StatusCode.INVALID_ARGUMENT, reason="FIELD_INVALID", violations=violations
        )
    ]
    with pytest.raises(errors.InvalidEvent) as caught:
        client.submit(new_event("a"))
    assert {v.field: v.description for v in caught.value.field_violations} == violations
    assert str(caught.value) == (
        "INVALID_ARGUMENT FIELD_INVALID: a text "
        "(event.type: 1 to 255 bytes; event.source: no control characters)"
    )


def test_a_conflict_names_the_first_event(service: FakeService, client: IngestClient) -> None:
    service.failures += [
        Failure(
            code=grpc.StatusCode.ALREADY_EXISTS,
            reason="IDEMPOTENCY_CONFLICT",
            metadata={"event_id": "the-first"},
        )
    ]
    with pytest.raises(errors.IdempotencyConflict) as caught:
        client.submit(new_event("a"))
    assert caught.value.event_id == "the-first"


def test_details_that_cannot_be_read_leave_the_code(
    service: FakeService, client: IngestClient
) -> None:
    service.failures += [Failure(code=grpc.StatusCode.NOT_FOUND, garbage=b"\xff\xff")]
    with pytest.raises(errors.EventNotFound) as caught:
        client.get("a")
    assert caught.value.reason == ""


def test_errors_can_cross_processes() -> None:
    error = errors.InvalidEvent(
        "no", reason="FIELD_INVALID", field_violations=[FieldViolation(field="type")]
    )
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  # made one line above
    assert str(copy) == str(error)
    assert type(copy) is type(error)
