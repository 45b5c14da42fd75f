"""What row 15 puts into the queue: messages that are not of the service's own form."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path


class _Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self._path), "w")


def garbage(trap: Path) -> Iterator[bytes]:
    """Give message after message; one creates the file `trap` when it is unpickled."""

    def message(actor: str, *args: object, **kwargs: object) -> bytes:
        body = {
            "queue_name": "ingest",
            "actor_name": actor,
            "args": args,
            "kwargs": kwargs,
            "options": {"redis_message_id": "x"},
            "message_id": "y",
            "message_timestamp": 0,
        }
        return json.dumps(body).encode()

    yield b""
    yield b"\x80\xff garbage"
    yield b"{"
    yield b"[]"
    yield b'{"some": "json"}'
    yield pickle.dumps(_Bomb(trap))
    yield message("no_such_actor", {})
    yield message("process_events")
    yield message("process_events", "text")
    yield message("process_events", {"../../etc": ["passwd"]})
    yield message("process_events", {"a": {"b": 1}})
    yield message("process_events", {"x" * 36: ["y" * 36] * 20_000})
    yield message("recover_events", {}, attempts="many")
    yield message(
        "recover_events",
        {"00000000-0000-0000-0000-000000000000": ["00000000-0000-7000-8000-000000000000"]},
        attempts=0,
    )
