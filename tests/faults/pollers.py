"""Pollers: ask for events that were answered OK, and note what they see."""

import time
from collections.abc import Sequence

import grpc

from ingest.v1.event_pb2 import (
    EVENT_STATUS_PENDING,
    EVENT_STATUS_PROCESSED,
    PAYLOAD_FORMAT_NONE,
    Event,
)
from ingest.v1.ingest_service_pb2 import GetEventRequest
from tests.faults.load import Client, describe

#: Seconds between two questions.
_PAUSE = 0.05
_PASSING = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "RESOURCE_EXHAUSTED"})


class Poller:
    """Polls at a steady rate; by id and by idempotency key in turn."""

    def __init__(self, client: Client, writers: Sequence[Client]) -> None:
        """Take a client of its own, and the writers whose events it asks for."""
        self._client = client
        self._writers = writers
        self._final: dict[str, int] = {}

    def run(self) -> None:
        """Poll until told to stop."""
        while not self._client.stopping.wait(_PAUSE):
            stored = self._client.random.choice(self._writers).stored
            if stored:
                # Mostly the newest, whose status is about to change.
                newest = min(len(stored), 5 if self._client.random.random() < 0.7 else 200)
                self._poll(*stored[-self._client.random.randint(1, newest)])

    def _poll(self, key: str, event_id: str) -> None:
        client = self._client
        request = GetEventRequest(payload_format=PAYLOAD_FORMAT_NONE)
        if client.random.random() < 0.5:
            request.event_id = event_id
        else:
            request.idempotency_key = key
        began = time.monotonic()
        try:
            event = client.stub.GetEvent(
                request, timeout=client.plan.attempt_timeout, metadata=client.metadata
            ).event
        except grpc.RpcError as error:
            code, reason = describe(error)
            if code not in _PASSING:
                self._violation(key, f"GetEvent after OK: {code} {reason}")
            return
        ms = (time.monotonic() - began) * 1000
        client.journal.note(
            client.name, "poll", key, "seen", event_id=event.event_id, status=event.status, ms=ms
        )
        self._judge(key, event_id, event)

    def _judge(self, key: str, event_id: str, event: Event) -> None:
        if event.event_id != event_id:
            self._violation(key, "GetEvent answers another event than the receipt")
        before = self._final.get(key, EVENT_STATUS_PENDING)
        if before not in {EVENT_STATUS_PENDING, event.status}:
            self._violation(key, f"status went from {before} to {event.status}")
        if event.status == EVENT_STATUS_PROCESSED and not event.HasField("processed_at"):
            self._violation(key, "processed without processed_at")
        self._final[key] = event.status

    def _violation(self, key: str, text: str) -> None:
        self._client.journal.note(self._client.name, "poll", key, "violation", code=text)
