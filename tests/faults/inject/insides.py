"""What tests see of a server's insides, leaks that they must see, and options that come sooner."""

import asyncio
import ctypes
import gc
import json
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

Patches = list[tuple[str, Callable[[ModuleType], None]]]
#: So much for each call that leaks memory.
_LEAKED_BYTES = 1 << 20


def _name(coroutine: Any) -> str:
    return str(coroutine.__qualname__)


def tell_tasks(text: str) -> Patches:
    """Writes to a file, at each SIGUSR1, how many tasks there are of which coroutine; no bug.

    What is free is given back first, as the product does it twice a minute.
    """
    file = Path(text)

    def tell(*_: object) -> None:
        tasks = Counter(_name(task.get_coro()) for task in asyncio.all_tasks())
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        new = file.with_suffix(".new")
        new.write_text(json.dumps(tasks), encoding="utf-8")
        new.replace(file)

    signal.signal(signal.SIGUSR1, tell)
    return []


def leak(text: str) -> Patches:
    """Keeps something with each call of GetEventCounts: memory, a task, a thread, a connection."""
    kept: list[object] = []

    def connect() -> object:
        from eventstore.engine import build_engine  # noqa: PLC0415  # not at the start

        url = os.environ["INGEST_DATABASE_URL"]
        return build_engine(url, name="ingest-leak", pool_size=1).connect()

    def start() -> object:
        thread = threading.Thread(target=threading.Event().wait, daemon=True)
        thread.start()
        return thread

    more: Callable[[], object] = {
        "memory": lambda: b"x" * _LEAKED_BYTES,
        "tasks": lambda: asyncio.ensure_future(asyncio.Event().wait()),
        "threads": start,
        "sockets": socket.socket,
        "database": connect,
    }[text]

    def patch(module: Any) -> None:
        count = module.IngestServicer.GetEventCounts

        async def leaking(*args: Any) -> Any:
            kept.append(more())
            return await count(*args)

        module.IngestServicer.GetEventCounts = leaking

    return [("ingest_service.servicer", patch)]


def sooner(text: str) -> Patches:
    """Divides every time of the gRPC server's options, those that are set, by so much; no bug.

    What follows `/` is an option that is dropped, and that is a bug.
    """
    by, _, dropped = text.partition("/")

    def patch(server: Any) -> None:
        server.OPTIONS = [
            (name, value // int(by) if name.endswith("_ms") else value)
            for name, value in server.OPTIONS
            if name != dropped
        ]

    return [("ingest_service.server", patch)]


PLANTS: dict[str, Callable[[str], Patches]] = {
    "tell-tasks": tell_tasks,
    "leak": leak,
    "sooner": sooner,
}
