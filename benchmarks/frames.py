"""Requests as bytes: length-prefixed gRPC frames, which h2load posts as they are."""

import struct
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.message import Message

from benchmarks.corpus import Corpus
from ingest.v1.event_pb2 import EventInput
from ingest.v1.ingest_service_pb2 import StreamEventsRequest, SubmitEventRequest

SUBMIT = "/ingest.v1.IngestService/SubmitEvent"
BATCH = "/ingest.v1.IngestService/BatchSubmitEvents"
GET = "/ingest.v1.IngestService/GetEvent"
LIST = "/ingest.v1.IngestService/ListEvents"
STREAM = "/ingest.v1.IngestService/StreamEvents"


def frame(message: Message) -> bytes:
    """Return an uncompressed gRPC frame: a zero byte, the length, the message."""
    wire = message.SerializeToString()
    return struct.pack(">BI", 0, len(wire)) + wire


def submit_body(corpus: Corpus) -> bytes:
    """Return the body of one SubmitEvent."""
    return submit_frame(corpus.events[0])


def submit_frame(event: EventInput) -> bytes:
    """Return the body of one SubmitEvent of this event."""
    return frame(SubmitEventRequest(event=event))


def stream_body(corpus: Corpus, *, events: int, per_message: int) -> bytes:
    """Return the body of one StreamEvents that holds `events` events."""
    return events_body(list(corpus.cycle(events)), per_message=per_message)


def events_body(events: Sequence[EventInput], *, per_message: int) -> bytes:
    """Return the body of one StreamEvents of these events."""
    return b"".join(
        frame(StreamEventsRequest(events=events[start : start + per_message]))
        for start in range(0, len(events), per_message)
    )


def write_body(folder: Path, body: bytes) -> Path:
    """Write a body to a file, once for each content."""
    file = folder / f"body-{len(body)}-{hash(body) & 0xFFFFFFFF:08x}"
    if not file.exists():
        file.write_bytes(body)
    return file
