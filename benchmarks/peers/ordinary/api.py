"""The HTTP API: check the token, commit, hand the id to Celery, answer."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import jwt
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel, Field

from benchmarks.peers.ordinary.models import Event, Session
from benchmarks.peers.ordinary.tasks import process_many, process_one

_SECRET = os.environ["PEER_JWT_SECRET"]


class EventIn(BaseModel):
    """What a client sends."""

    type: str = Field(min_length=1, max_length=255)
    source: str = Field("", max_length=255)
    payload: dict[str, Any] | None = None


def _user(authorization: str) -> str:
    try:
        claims = jwt.decode(
            authorization.removeprefix("Bearer "),
            _SECRET,
            algorithms=["HS256"],
            audience="ingest",
            issuer="ingest",
        )
    except jwt.PyJWTError:
        raise HTTPException(401, "bad token") from None
    return str(claims["sub"])


def _store(events: list[EventIn], user_id: str) -> list[str]:
    rows = [
        Event(user_id=user_id, type=event.type, source=event.source, payload=event.payload)
        for event in events
    ]
    with Session.begin() as session:
        session.add_all(rows)
        session.flush()
        return [str(row.id) for row in rows]


def submit(event: EventIn, authorization: Annotated[str, Header()]) -> dict[str, str]:
    """Store one event."""
    (event_id,) = _store([event], _user(authorization))
    process_one.delay(event_id)
    return {"id": event_id}


def submit_batch(
    events: list[EventIn], authorization: Annotated[str, Header()]
) -> dict[str, list[str]]:
    """Store many events; each is processed by a task of its own."""
    ids = _store(events, _user(authorization))
    for event_id in ids:
        process_one.delay(event_id)
    return {"ids": ids}


def submit_bulk(
    events: list[EventIn], authorization: Annotated[str, Header()]
) -> dict[str, list[str]]:
    """Store many events; one task processes them all."""
    ids = _store(events, _user(authorization))
    process_many.delay(ids)
    return {"ids": ids}


@asynccontextmanager
async def _started(_app: object) -> AsyncIterator[None]:
    # The log is quiet, so the bench is told in this way that a process is ready.
    print("peer_api_started", flush=True)
    yield


app = FastAPI(lifespan=_started)
app.add_api_route("/events", submit, methods=["POST"])
app.add_api_route("/events/batch", submit_batch, methods=["POST"])
app.add_api_route("/events/bulk", submit_bulk, methods=["POST"])
