"""Asking what became of events."""

from datetime import datetime

import pytest

from ingest.client import IngestClient
from ingest.errors import EventNotFound, InvalidEvent, StillPending
from ingest.events import new_event
from ingest.v1 import event_pb2
from tests.client.fake_service import FakeService


def test_an_event_is_found_by_id_and_by_key(client: IngestClient) -> None:
    receipt = client.submit(new_event("a", {"n": 1}, idempotency_key="k"))
    assert client.get(receipt.event_id) == client.get(idempotency_key="k")
    assert client.get(receipt.event_id).payload_json == '{"n":1}'


def test_an_unknown_event_is_not_found(client: IngestClient) -> None:
    with pytest.raises(EventNotFound):
        client.get("nowhere")


@pytest.mark.parametrize("lookup", [{}, {"event_id": "a", "idempotency_key": "b"}])
def test_a_look_up_needs_one_name(client: IngestClient, lookup: dict[str, str]) -> None:
    with pytest.raises(TypeError):
        client.get(**lookup)  # type: ignore[arg-type]  # payload_format is not among them


def test_waiting_ends_with_the_final_status(service: FakeService, client: IngestClient) -> None:
    receipt = client.submit(new_event("a"))
    service.looks_pending = 3
    assert client.wait(receipt.event_id).processed
    assert service.calls.count("GetEvent") == 4


def test_waiting_ends_with_the_timeout(service: FakeService, client: IngestClient) -> None:
    receipt = client.submit(new_event("a"))
    service.looks_pending = 1_000
    with pytest.raises(StillPending, match=receipt.event_id):
        client.wait(receipt.event_id, timeout=0.02)


def test_no_time_to_wait_is_one_look(service: FakeService, client: IngestClient) -> None:
    receipt = client.submit(new_event("a"))
    assert client.wait(receipt.event_id, timeout=0).processed
    service.looks_pending = 1
    with pytest.raises(StillPending):
        client.wait(receipt.event_id, timeout=0)


def test_waiting_for_no_number_of_seconds_is_refused(client: IngestClient) -> None:
    with pytest.raises(ValueError, match="timeout must be a number of seconds"):
        client.wait("00000000-0000-7000-8000-000000000000", timeout=float("nan"))


def test_a_list_goes_through_all_pages(service: FakeService, client: IngestClient) -> None:
    client.submit_batch(new_event("a") for _ in range(7))
    events = list(client.list(event_type="a", page_size=3))
    assert [event.event_id for event in events] == [f"event-{n}" for n in range(6, -1, -1)]
    assert service.calls.count("ListEvents") == 3


def test_a_list_fetches_only_what_is_read(service: FakeService, client: IngestClient) -> None:
    client.submit_batch(new_event("a") for _ in range(7))
    next(client.list(page_size=3))
    assert service.calls.count("ListEvents") == 1


def test_a_list_refuses_times_without_a_zone(client: IngestClient) -> None:
    naive = datetime(2026, 1, 1)  # noqa: DTZ001  # the point of the test
    with pytest.raises(InvalidEvent, match="received_before: must have a time zone"):
        next(client.list(received_before=naive))


def test_counts_are_told_by_status(client: IngestClient) -> None:
    client.submit(new_event("a"))
    counts = client.counts().counts
    assert [(c.status, c.count) for c in counts] == [(event_pb2.EVENT_STATUS_PROCESSED, 1)]
