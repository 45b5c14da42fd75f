"""TLS and mTLS: who gets in, and new certificates while streams are open."""

import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from queue import SimpleQueue

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ingest.channel import TLS
from ingest.client import IngestClient
from ingest.errors import IngestError
from ingest.v1.event_pb2 import EventInput
from tests.kit.caller import Caller, event
from tests.kit.certificates import Authority, write
from tests.kit.processes import Processes
from tests.kit.server import BIN, Service, Start, settings_for
from tests.kit.tokens import make_token
from tests.kit.waiting import eventually

#: Some keys are for this one way of signing alone.
RSA_PSS = Path(__file__).parents[1] / "kit" / "rsa_pss.pem"


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def tls_env(
    database_url: str, redis_url: str, authority: Authority, tmp_path: Path
) -> dict[str, str]:
    """Settings of a server with TLS."""
    cert, key = write(tmp_path, *authority.issue())
    tls = {"TLS_CERT_FILE": str(cert), "TLS_KEY_FILE": str(key), "STREAM_IDLE_SECONDS": "30"}
    return settings_for(database_url, redis_url, **tls)


def served(server: Service, credentials: grpc.ChannelCredentials | None) -> bool:
    """Whether a call with these credentials gets through; False when there is no connection."""
    channel = (
        grpc.secure_channel(server.address, credentials)
        if credentials
        else grpc.insecure_channel(server.address)
    )
    with channel:
        # Whoever is refused is told so; nobody need wait for a connection that may still come.
        states = SimpleQueue[grpc.ChannelConnectivity]()
        channel.subscribe(states.put, try_to_connect=True)
        while (state := states.get(timeout=10)) is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                return False
        return Caller(channel, make_token()).is_served()


def client_credentials(
    authority: Authority, clients: Authority, days: int = 1
) -> grpc.ChannelCredentials:
    """Trust the one authority, and show a certificate of the other."""
    certificate, key = clients.issue("client", days=days)
    return grpc.ssl_channel_credentials(authority.pem, key, certificate)


def self_signed() -> tuple[bytes, bytes]:
    """A certificate that vouches for itself, and its key."""
    alone = Authority("localhost")
    key = alone._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return alone.pem, key


def serial_of(server: Service, authority: Authority | None) -> bytes | None:
    """The certificate that a new connection is shown; without an authority none is refused."""
    context = ssl.create_default_context(cadata=authority.pem.decode() if authority else None)
    context.set_alpn_protocols(["h2"])
    if authority is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", server.port), 5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        return wrapped.getpeercert(binary_form=True)


def test_with_tls_only_who_trusts_the_authority_gets_in(
    tls_env: dict[str, str], authority: Authority, start_service: Start
) -> None:
    server = start_service(tls_env)

    assert served(server, grpc.ssl_channel_credentials(authority.pem))
    assert not served(server, grpc.ssl_channel_credentials(Authority("other").pem))
    assert not served(server, None)


def test_a_certificate_that_nobody_should_trust_is_refused_by_the_client(
    tls_env: dict[str, str], authority: Authority, start_service: Start, tmp_path: Path
) -> None:
    """By the channel, and by the client library; each is shown by one running server."""
    server = start_service(tls_env)
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(authority.pem)
    trusting = grpc.ssl_channel_credentials(authority.pem)

    def is_served() -> bool:
        with IngestClient(server.address, make_token(), tls=TLS(ca_file=ca_file)) as client:
            try:
                return bool(client.submit(event(), timeout=0.5).event_id)
            except IngestError:
                return False

    assert is_served()
    for bad in (
        Authority("stranger").issue(),
        Authority().issue(),  # of the same name, by another key
        authority.issue(days=-1),
        self_signed(),
    ):
        write(tmp_path, *bad)
        shown = ssl.PEM_cert_to_DER_cert(bad[0].decode())
        eventually(lambda: serial_of(server, None) == shown)  # noqa: B023  # asked at once
        assert not is_served()
        assert not served(server, trusting)
    write(tmp_path, *authority.issue())
    assert served(server, trusting)
    assert is_served()


def test_a_name_that_is_not_in_the_certificate_is_refused(
    tls_env: dict[str, str], authority: Authority, start_service: Start
) -> None:
    server = start_service(tls_env)
    options = [("grpc.ssl_target_name_override", "elsewhere.example.org")]
    credentials = grpc.ssl_channel_credentials(authority.pem)

    with (
        grpc.secure_channel(server.address, credentials, options) as channel,
        pytest.raises(grpc.FutureTimeoutError),
    ):
        grpc.channel_ready_future(channel).result(timeout=0.5)
    assert served(server, credentials)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_versions_of_tls_are_refused(
    tls_env: dict[str, str], authority: Authority, start_service: Start
) -> None:
    server = start_service(tls_env)
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")

    with (
        socket.create_connection(("127.0.0.1", server.port), 5) as plain,
        pytest.raises(OSError, match=r"(?i)ssl|tls|reset|eof"),
    ):
        context.wrap_socket(plain, server_hostname="localhost")
    assert served(server, grpc.ssl_channel_credentials(authority.pem))


def test_with_a_client_authority_a_certificate_is_needed_besides_the_token(
    tls_env: dict[str, str], authority: Authority, start_service: Start, tmp_path: Path
) -> None:
    clients = Authority("clients")
    ca_file = tmp_path / "clients.pem"
    ca_file.write_bytes(clients.pem)
    server = start_service(tls_env | {"INGEST_TLS_CLIENT_CA_FILE": str(ca_file)})

    assert served(server, client_credentials(authority, clients))
    assert not served(server, grpc.ssl_channel_credentials(authority.pem))
    for strangers in (Authority("strangers"), Authority("clients")):
        assert not served(server, client_credentials(authority, strangers))
    assert not served(server, client_credentials(authority, clients, days=-1))
    certificate, key = self_signed()
    assert not served(server, grpc.ssl_channel_credentials(authority.pem, key, certificate))


def test_a_new_client_authority_is_taken_over_and_a_spoilt_one_is_not(
    tls_env: dict[str, str], authority: Authority, start_service: Start, tmp_path: Path
) -> None:
    """Of one without a certificate gRPC would let nobody in, and say nothing."""
    old, new = Authority("clients"), Authority("new clients")
    ca_file = tmp_path / "clients.pem"
    ca_file.write_bytes(old.pem)
    server = start_service(tls_env | {"INGEST_TLS_CLIENT_CA_FILE": str(ca_file)})

    def replace(content: bytes) -> None:
        ca_file.with_suffix(".new").write_bytes(content)
        ca_file.with_suffix(".new").replace(ca_file)

    for spoilt in (b"", b"\n", b"no certificate", old.pem[:-40]):
        replace(spoilt)
        assert served(server, client_credentials(authority, old)), spoilt
    ca_file.unlink()
    assert served(server, client_credentials(authority, old))
    told = [line for line in server.process.stderr().splitlines() if "tls_files_unread" in line]
    assert "INGEST_TLS_CLIENT_CA_FILE must hold PEM certificates" in told[0]
    assert len(told) == 2

    replace(new.pem)
    assert served(server, client_credentials(authority, new))
    assert not served(server, client_credentials(authority, old))
    replace(old.pem + new.pem)
    assert served(server, client_credentials(authority, old))
    assert served(server, client_credentials(authority, new))


def test_files_of_the_same_time_are_taken_over(
    tls_env: dict[str, str], authority: Authority, start_service: Start, tmp_path: Path
) -> None:
    """Where packages are built repeatably, every file is of the same second."""
    server = start_service(tls_env)
    before = serial_of(server, authority)
    for name, content in zip(("cert.pem", "key.pem"), authority.issue("renewed"), strict=True):
        new = tmp_path / f"{name}.new"
        new.write_bytes(content)
        same = (tmp_path / name).stat().st_mtime_ns
        os.utime(new, ns=(same, same))
        new.replace(tmp_path / name)

    eventually(lambda: serial_of(server, authority) != before)


def test_the_client_speaks_tls_and_mtls(
    tls_env: dict[str, str], authority: Authority, start_service: Start, tmp_path: Path
) -> None:
    ca_file, folder = tmp_path / "ca.pem", tmp_path / "client"
    folder.mkdir()
    ca_file.write_bytes(authority.pem)
    cert, key = write(folder, *authority.issue("client"))
    server = start_service(tls_env | {"INGEST_TLS_CLIENT_CA_FILE": str(ca_file)})

    with IngestClient(
        server.address, make_token(), tls=TLS(ca_file=ca_file, cert_file=cert, key_file=key)
    ) as client:
        assert not client.submit(event(), timeout=10).duplicate
    with (
        IngestClient(server.address, make_token(), tls=TLS(ca_file=ca_file)) as client,
        pytest.raises(IngestError),
    ):
        client.submit(event(), timeout=1)


def test_a_new_certificate_is_taken_over_without_dropping_an_open_stream(
    tls_env: dict[str, str], authority: Authority, start_service: Start, tmp_path: Path
) -> None:
    server = start_service(tls_env)
    before = serial_of(server, authority)
    go_on = threading.Event()
    answers: list[int] = []

    def messages() -> Iterator[list[EventInput]]:
        yield [event("before")]
        go_on.wait(20)
        yield [event("after")]

    with grpc.secure_channel(
        server.address, grpc.ssl_channel_credentials(authority.pem)
    ) as channel:
        alice = Caller(channel, make_token())
        thread = threading.Thread(target=lambda: answers.append(alice.stream(messages()).accepted))
        thread.start()
        eventually(lambda: alice.counts() == {"PENDING": 1})

        write(tmp_path, *authority.issue("renewed"))
        eventually(lambda: serial_of(server, authority) != before)
        go_on.set()
        thread.join()

    assert answers == [2]
    assert served(server, grpc.ssl_channel_credentials(authority.pem))


def test_a_broken_replacement_leaves_the_old_certificate_in_use(
    tls_env: dict[str, str], authority: Authority, start_service: Start, tmp_path: Path
) -> None:
    server = start_service(tls_env)
    (tmp_path / "cert.pem").write_bytes(b"half a certif")

    for _ in range(3):
        assert served(server, grpc.ssl_channel_credentials(authority.pem))
    assert server.process.stderr().count("INGEST_TLS_CERT_FILE and INGEST_TLS_KEY_FILE must") == 1


def test_keys_that_grpc_knows_are_taken_over_and_others_are_not(
    tls_env: dict[str, str], authority: Authority, start_service: Start, tmp_path: Path
) -> None:
    server = start_service(tls_env)
    trusting = grpc.ssl_channel_credentials(authority.pem)
    shown = b""
    for known in (
        rsa.generate_private_key(65_537, 2_048),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256R1()),
    ):
        certificate, key = authority.issue(key=known)
        write(tmp_path, certificate, key)
        shown = ssl.PEM_cert_to_DER_cert(certificate.decode())
        eventually(lambda: serial_of(server, authority) == shown)  # noqa: B023  # asked at once
        assert served(server, trusting)
    pss = RSA_PSS.read_bytes()
    for unknown in (authority.issue(key=Ed25519PrivateKey.generate()), (pss, pss)):
        before = server.process.stderr().count("must have a key that gRPC serves")
        write(tmp_path, *unknown)
        assert served(server, trusting)
        assert serial_of(server, authority) == shown
        write(tmp_path, b"", b"")  # or it would be the same problem, which is told once
        assert served(server, trusting)
        told = server.process.stderr().count("must have a key that gRPC serves")
        assert told == before + 1


def test_a_fifo_in_place_of_the_certificate_holds_up_no_handshake_and_no_end(
    tls_env: dict[str, str], authority: Authority, start_service: Start, tmp_path: Path
) -> None:
    """It is told once, and the next good file is taken."""
    server = start_service(tls_env)
    trusting = grpc.ssl_channel_credentials(authority.pem)
    before = serial_of(server, authority)
    (tmp_path / "cert.pem").unlink()
    os.mkfifo(tmp_path / "cert.pem")

    for _ in range(3):
        assert served(server, trusting)
    assert server.process.stderr().count("tls_files_unreadable") == 1

    (tmp_path / "cert.pem").unlink()
    write(tmp_path, *authority.issue("renewed"))
    eventually(lambda: serial_of(server, authority) != before)
    (tmp_path / "cert.pem").unlink()
    os.mkfifo(tmp_path / "cert.pem")
    assert served(server, trusting)
    assert server.stop() == 0


def test_a_certificate_without_its_key_stops_the_start(
    tls_env: dict[str, str], processes: Processes, tmp_path: Path
) -> None:
    (tmp_path / "key.pem").unlink()
    process = processes.start(BIN / "ingest-service", "serve", env=tls_env)

    assert process.wait() == 2
    assert "TLS" in process.stderr()
    assert "Traceback" not in process.output()


@pytest.mark.parametrize("mode, verdict", [(0o600, "ok"), (0o640, "ok"), (0o644, "warn")])
def test_a_private_key_that_others_may_read_is_reported(
    tls_env: dict[str, str], tmp_path: Path, mode: int, verdict: str
) -> None:
    (tmp_path / "key.pem").chmod(mode)
    done = subprocess.run(
        [BIN / "ingest-service", "doctor", "--allow-unsafe-durability"],
        env={"PATH": os.environ["PATH"], **tls_env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    (line,) = (line for line in done.stdout.splitlines() if " TLS key: " in f" {line}")

    assert line.split()[0] == verdict
    assert verdict == "ok" or "chmod" in line
    assert done.returncode == 0


def test_files_that_are_replaced_one_by_one_let_somebody_in_at_each_step(
    tls_env: dict[str, str], authority: Authority, start_service: Start, tmp_path: Path
) -> None:
    """In every order, by new files and within old ones: the old pair and then the new."""
    clients = Authority("clients")
    ca_file = tmp_path / "clients.pem"
    ca_file.write_bytes(clients.pem)
    server = start_service(tls_env | {"INGEST_TLS_CLIENT_CA_FILE": str(ca_file)})
    shown = serial_of(server, authority)
    for number, order in enumerate(permutations(("cert.pem", "key.pem", "clients.pem"))):
        certificate, key = authority.issue()
        old_clients, clients = clients, Authority("clients")
        contents = {"cert.pem": certificate, "key.pem": key, "clients.pem": clients.pem}
        for name in order:
            whole = tmp_path / (name if number % 2 else f"{name}.new")
            whole.write_bytes(contents[name])
            whole.replace(tmp_path / name)
            let_in = [
                served(server, client_credentials(authority, one)) for one in (old_clients, clients)
            ]
            assert let_in.count(True) == 1, (order, name, let_in)
        new = ssl.PEM_cert_to_DER_cert(certificate.decode())
        assert serial_of(server, authority) == new != shown
        shown = new
        assert served(server, client_credentials(authority, clients))


def test_a_link_to_a_folder_that_is_changed_over_takes_all_files_along(
    database_url: str, redis_url: str, authority: Authority, start_service: Start, tmp_path: Path
) -> None:
    """As Kubernetes mounts a secret: links to a link, which a rename changes over."""

    def point_to(folder: Path) -> bytes:
        folder.mkdir()
        certificate, key = authority.issue()
        write(folder, certificate, key)
        (tmp_path / "..new").symlink_to(folder.name)
        (tmp_path / "..new").rename(tmp_path / "..data")
        return ssl.PEM_cert_to_DER_cert(certificate.decode())

    first = point_to(tmp_path / "..1")
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    tls = {
        "TLS_CERT_FILE": str(tmp_path / "cert.pem"),
        "TLS_KEY_FILE": str(tmp_path / "key.pem"),
    }
    server = start_service(settings_for(database_url, redis_url, **tls))
    assert serial_of(server, authority) == first

    second = point_to(tmp_path / "..2")
    assert serial_of(server, authority) == second
    # The link is there before the folder that it names: the old ones go on.
    (tmp_path / "..new").symlink_to("..3")
    (tmp_path / "..new").rename(tmp_path / "..data")
    assert serial_of(server, authority) == second
    third = point_to(tmp_path / "..3")
    assert serial_of(server, authority) == third
    assert served(server, grpc.ssl_channel_credentials(authority.pem))
