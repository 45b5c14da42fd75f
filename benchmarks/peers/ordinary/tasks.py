"""The Celery tasks: load, validate, normalise, stamp, commit."""

import os
import sys
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from celery import Celery
from celery.signals import worker_ready
from sqlalchemy import func, select

from benchmarks.peers.ordinary.models import Event, Session

celery = Celery("peer", broker=os.environ["PEER_BROKER_URL"])
celery.conf.update(task_ignore_result=True, task_acks_late=True, worker_prefetch_multiplier=4)


def _process(event: Event) -> None:
    payload = event.payload
    if payload is not None and not isinstance(payload, dict):
        event.status, event.error = 3, "payload must be an object or null"
        return
    properties: dict[str, Any] = {
        "normalized_at": datetime.now(UTC).isoformat(),
        "user": {"id": event.user_id},
    }
    for name in ("page", "referrer"):
        if payload and name in payload:
            properties[name] = str(payload[name]).strip()
    for name in ("duration", "scroll_depth"):
        if payload and name in payload:
            properties[name] = float(payload[name])
    event.status, event.properties = 2, properties
    event.processed_at = func.clock_timestamp()


def process_event(event_id: str) -> None:
    """Process one event."""
    with Session.begin() as session:
        event = session.get(Event, uuid.UUID(event_id), with_for_update=True)
        if event is not None and event.status == 1:
            _process(event)


def process_events(event_ids: Sequence[str]) -> None:
    """Process many events in one transaction."""
    chosen = select(Event).where(Event.id.in_([uuid.UUID(i) for i in event_ids]))
    with Session.begin() as session:
        for event in session.scalars(chosen.with_for_update()):
            if event.status == 1:
                _process(event)


@worker_ready.connect  # type: ignore[untyped-decorator]  # Celery has no types
def _started(**_sender: object) -> None:
    # The log is quiet, so the bench is told in this way that the worker is ready.
    print("peer_worker_started", file=sys.__stderr__, flush=True)


process_one = celery.task(process_event, name="process_event")
process_many = celery.task(process_events, name="process_events")
