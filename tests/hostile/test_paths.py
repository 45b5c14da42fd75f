"""A call whose `:path` is not UTF-8 ends gRPC's server: another one is in its place at once."""

import json
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from eventstore import migrations
from ingest.v1 import ingest_service_pb2 as pb
from tests.hostile.frames import Connection, message
from tests.kit.caller import Caller, event
from tests.kit.certificates import Authority, write
from tests.kit.processes import Processes
from tests.kit.server import BIN, Service, Start, settings_for, two_processes
from tests.kit.tokens import make_token
from tests.kit.waiting import eventually

NOT_UTF8: dict[str, Any] = {":path": "/ingest.v1.IngestService/\udcff"}
STREAM = message(pb.StreamEventsRequest(events=[event()]).SerializeToString())


@contextmanager
def poisoned(service: Service, tls: ssl.SSLContext | None = None) -> Iterator[None]:
    """Send such a call, and leave it and its connection open."""
    with closing(Connection(service.port, tls=tls)) as made:
        made.open("", service.nobody(), end=True, **NOT_UTF8)
        yield


def told(service: Service) -> list[str]:
    """What was logged but for debug, with what gRPC says itself when the address was taken."""
    lines = service.process.stderr().rpartition("\n")[0].splitlines()
    return [line for line in lines if '"level": "debug"' not in line]


def replaced(service: Service) -> int:
    """How often the server says that it replaced what gRPC ended."""
    said = [json.loads(line) for line in told(service) if "grpc_server_replaced" in line]
    return sum(one["count"] for one in said)


def was_replaced(service: Service, times: int) -> bool:
    """Whether that is said, at least so many times."""
    return replaced(service) >= times


def is_served(service: Service, credentials: grpc.ChannelCredentials | None = None) -> bool:
    """Whether a newcomer is served; False when nobody listens at this moment."""
    channel = (
        grpc.secure_channel(service.address, credentials)
        if credentials
        else grpc.insecure_channel(service.address)
    )
    with channel:
        try:
            return Caller(channel, make_token()).is_served()
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017  # or it was answered
            return False


@pytest.fixture(params=["serve on PostgreSQL", "serve on SQLite", "dev"])
def anyone(
    request: pytest.FixtureRequest,
    database_url: str,
    redis_url: str,
    start_service: Start,
    tmp_path: Path,
) -> Service:
    """A server of each kind, of this test's own."""
    if request.param == "dev":
        return start_service(settings_for("", "", DATA_DIR=str(tmp_path / "data")), "dev")
    if request.param == "serve on SQLite":
        url = f"sqlite:///{tmp_path / 'ingest.db'}"
        migrations.upgrade(url)
    else:
        url = database_url
    return start_service(settings_for(url, redis_url))


def test_a_path_that_is_not_utf8_keeps_nobody_out(anyone: Service) -> None:
    """On the same port, whether the one who sent it stays connected or not; SIGTERM still works."""
    for number in range(1, 6):
        with poisoned(anyone):
            eventually(lambda: is_served(anyone))
            eventually(partial(was_replaced, anyone, number))
        assert is_served(anyone)
    with poisoned(anyone):
        eventually(lambda: is_served(anyone))
        assert anyone.stop() == 0
    assert "xff" not in anyone.process.output()


def test_a_flood_of_such_paths_is_few_lines(anyone: Service) -> None:
    """Of them and of gRPC's own; many, because what gRPC frees too early shows after some time."""
    before = len(told(anyone))
    while replaced(anyone) < 300:
        try:
            with poisoned(anyone):
                pass
        except OSError:
            # Nobody listens at this moment.
            assert anyone.process.returncode is None, anyone.process.output()
    assert len(told(anyone)) - before <= 60
    eventually(lambda: is_served(anyone))


def test_calls_that_are_open_meanwhile_come_to_their_end(anyone: Service) -> None:
    alice = anyone.caller()
    with closing(Connection(anyone.port)) as made:
        stream = made.open("StreamEvents", alice, STREAM)
        eventually(alice.counts)
        with poisoned(anyone):
            eventually(lambda: replaced(anyone))
            made.feed(stream, STREAM, end=True)
            eventually(lambda: stream in made.ended())
        assert made.ended() == {stream: "0"}
    eventually(lambda: is_served(anyone))
    assert sum(anyone.caller(alice.subject).counts().values()) == 2


def test_it_is_the_same_with_tls(
    database_url: str, redis_url: str, start_service: Start, tmp_path: Path
) -> None:
    """Also while the files cannot be used, of which the next server needs none."""
    authority = Authority()
    cert, key = write(tmp_path, *authority.issue())
    files = {"TLS_CERT_FILE": str(cert), "TLS_KEY_FILE": str(key)}
    service = start_service(settings_for(database_url, redis_url, **files))
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    credentials = grpc.ssl_channel_credentials(authority.pem)
    for number in range(1, 4):
        with poisoned(service, context):
            eventually(lambda: is_served(service, credentials))
            eventually(partial(was_replaced, service, number))
        assert is_served(service, credentials)
        # The key is another one, and the certificate is not yet.
        key.write_bytes(authority.issue()[1])
    write(tmp_path, *authority.issue())
    assert is_served(service, credentials)
    assert service.stop() == 0


def test_several_processes_all_stay(
    database_url: str, redis_url: str, processes: Processes
) -> None:
    """The kernel gives a connection to whichever listens: all of them must."""
    service = two_processes(processes, database_url, redis_url)
    for number in range(1, 9):
        with poisoned(service):
            eventually(partial(was_replaced, service, number))
    for _ in range(30):
        assert is_served(service)
    assert service.process.stderr().count("server_started") == 2
    assert "server_process_ended" not in service.process.stderr()
    assert service.stop() == 0
    assert service.process.stderr().count("server_stopped") == 2


def port_of(service: Service, is_late: Callable[[], bool]) -> socket.socket | None:
    """Listen in the server's place as soon as it does not; None when it was faster."""
    while not is_late():
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind(("127.0.0.1", service.port))
            made.listen()
        except OSError:
            made.close()
        else:
            return made
    return None


def test_a_server_that_cannot_be_replaced_ends(
    database_url: str, redis_url: str, processes: Processes
) -> None:
    """Somebody else has the port; whoever supervises the process must learn it."""
    process = processes.start(
        BIN / "ingest-service",
        "serve",
        env=settings_for(database_url, redis_url),
        ready=lambda started: "server_started" in started.stderr(),
    )
    service = Service(process, {})
    taken = None
    while taken is None:
        before = replaced(service)
        with poisoned(service):
            taken = port_of(service, partial(was_replaced, service, before + 1))
    with taken:
        assert process.wait() == 1
    (lost,) = [one for one in process.stderr().splitlines() if "grpc_server_lost" in one]
    assert '"level": "critical"' in lost
    assert process.stderr().splitlines()[-1] == (
        "Error: the gRPC server ended and cannot be replaced"
    )
