"""How many may be connected at a time, and that they leave a server the files that it needs."""

import socket
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import grpc
import psycopg2
import pytest

from tests.hostile.frames import Connection
from tests.hostile.test_paths import NOT_UTF8
from tests.kit.caller import Caller, event
from tests.kit.processes import Processes
from tests.kit.server import BIN, Service, Start, record, settings_for
from tests.kit.tokens import make_token
from tests.kit.waiting import eventually


@pytest.fixture
def few_files(
    processes: Processes, database_url: str, redis_url: str
) -> Callable[..., tuple[Service, dict[str, int]]]:
    """Start a server that may open so many files, and return it with its limits."""

    def start(files: str, **more: str) -> tuple[Service, dict[str, int]]:
        env = settings_for(database_url, redis_url, **more)
        process = processes.start(
            "prlimit",
            f"--nofile={files}",
            BIN / "ingest-service",
            "serve",
            env=env,
            ready=lambda started: record(started, "server_started"),
        )
        limits = record(process, "server_limits")
        assert limits is not None
        return Service(process, env), limits

    return start


def connect(service: Service, opened: ExitStack) -> socket.socket:
    return opened.enter_context(socket.create_connection(("127.0.0.1", service.port), 5))


def is_taken(service: Service, opened: ExitStack) -> bool:
    """Whether somebody listens, and takes one more connection."""
    try:
        return is_kept(connect(service, opened))
    except OSError:
        return False


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
    few_files: Callable[..., tuple[Service, dict[str, int]]], database_url: str
) -> None:
    """More connect than the server may open files, and then it has to connect anew.

    A call that ends gRPC's server (tests/hostile/test_paths.py) has them counted from nothing,
    while those that are there stay for some seconds.
    """
    service, limits = few_files("300:300")
    assert (limits["open_files"], limits["connections"]) == (300, 75)
    caller = service.caller()
    caller.submit(event())

    with ExitStack() as opened:
        for _ in range(6):
            last = opened.enter_context(closing(Connection(service.port)))
            while is_kept(connect(service, opened)):
                pass
            last.open("", service.nobody(), end=True, **NOT_UTF8)
            eventually(lambda: is_taken(service, opened))
            assert len(list(Path(f"/proc/{service.process.pid}/fd").iterdir())) <= 300 - 50
        with closing(psycopg2.connect(database_url)) as admin, admin.cursor() as cursor:
            cursor.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            (ended,) = cursor.fetchone() or (0,)
        assert ended >= 2
    eventually(lambda: answers(service), timeout=10)


def test_a_server_allows_itself_the_files_that_its_connections_need(
    few_files: Callable[..., tuple[Service, dict[str, int]]],
) -> None:
    """As far as it may: many systems begin with 1,024 and have a second limit far above."""
    _, limits = few_files("256:4096", MAX_CONNECTIONS="1000")
    assert (limits["open_files"], limits["connections"]) == (2_200, 1_000)
    _, limits = few_files("256:1200", MAX_CONNECTIONS="1000")
    assert (limits["open_files"], limits["connections"]) == (1_200, 500)


def answers(service: Service) -> bool:
    try:
        with grpc.insecure_channel(service.address) as channel:
            return Caller(channel, make_token()).is_served()
    except grpc.RpcError:
        return False
