"""What a database that refuses to be connected to leaves behind."""

import gc
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine

from eventstore.engine import build_engine
from eventstore.errors import TransientStorageError, storage_errors

#: What PostgreSQL says while it starts: ErrorResponse with severity, code and text.
_STARTING_UP = b"E" + (28).to_bytes(4, "big") + b"SFATAL\0C57P03\0Mstarting\0\0"


@contextmanager
def starting_up() -> Iterator[int]:
    """A server that answers every connection so; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.recv(1_024)
                    client.sendall(_STARTING_UP)

        threading.Thread(target=answer, daemon=True).start()
        yield listener.getsockname()[1]


def refused(engine: Engine) -> None:
    with pytest.raises(TransientStorageError), storage_errors():
        engine.connect()


def test_refused_connections_leave_no_open_socket_to_the_garbage_collector() -> None:
    with starting_up() as port:
        engine = build_engine(
            f"postgresql://x@127.0.0.1:{port}/x", name="test", pool_size=1, keyed=True
        )
        refused(engine)
        gc.disable()
        try:
            before = len(list(Path("/proc/self/fd").iterdir()))
            for _ in range(10):
                refused(engine)
            assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
        finally:
            gc.enable()
