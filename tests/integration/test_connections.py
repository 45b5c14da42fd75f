"""How many may be connected at a time, and that they leave a server the files that it needs."""

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import grpc
import psycopg2

from tests.kit.caller import Caller, event
from tests.kit.server import Service, Start, record, settings_for
from tests.kit.waiting import eventually


@contextmanager
def few_files(count: int) -> Iterator[None]:
    """Have what is started here inherit that it may open so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connect(service: Service, opened: ExitStack) -> socket.socket:
    return opened.enter_context(socket.create_connection(("127.0.0.1", service.port), 5))


def is_kept(connection: socket.socket) -> bool:
    """Whether the server introduces itself, and does not just close."""
    return bool(connection.recv(1))


def test_who_is_one_too_many_is_disconnected_until_somebody_leaves(
    start_service: Start, database_url: str, redis_url: str
) -> None:
    service = start_service(settings_for(database_url, redis_url, MAX_CONNECTIONS="4"))
    first = service.caller()
    assert first.is_served()
    with ExitStack() as opened:
        others = [connect(service, opened) for _ in range(3)]
        assert all(map(is_kept, others))

        assert not any(is_kept(connect(service, opened)) for _ in range(10))
        assert first.is_served()

        others.pop().close()
        eventually(lambda: is_kept(connect(service, opened)), timeout=5)


def test_connections_leave_files_for_the_database(
    start_service: Start, database_url: str, redis_url: str
) -> None:
    """More connect than the server may open files, and then it has to connect anew."""
    with few_files(256):
        service = start_service(settings_for(database_url, redis_url))
    limits = record(service.process, "server_limits")
    assert limits is not None
    assert (limits["open_files"], limits["connections"]) == (256, 128)
    caller = service.caller()
    caller.submit(event())

    with ExitStack() as opened:
        kept = sum(is_kept(connect(service, opened)) for _ in range(300))
        assert kept == 128 - 1
        files = len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))
        assert files <= 256 - 20
        with closing(psycopg2.connect(database_url)) as admin, admin.cursor() as cursor:
            cursor.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            (ended,) = cursor.fetchone() or (0,)
        assert ended >= 2
        eventually(lambda: answers(caller), timeout=10)


def answers(caller: Caller) -> bool:
    try:
        return caller.is_served()
    except grpc.RpcError:
        return False
