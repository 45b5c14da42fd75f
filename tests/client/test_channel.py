"""Which connections are encrypted, and with whose certificates."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ingest.channel import TLS, is_loopback
from ingest.client import IngestClient
from ingest.errors import Unavailable
from ingest.events import new_event
from ingest.retry import RetryPolicy
from tests.client.fake_service import FakeService, serving


class Certificate:
    """A self-signed certificate for this machine, good for a server and a client alike."""

    def __init__(self, folder: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False
            )
            .sign(key, hashes.SHA256())
        )
        self.key = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        self.certificate = certificate.public_bytes(serialization.Encoding.PEM)
        self.key_file = folder / "key.pem"
        self.key_file.write_bytes(self.key)
        self.cert_file = folder / "cert.pem"
        self.cert_file.write_bytes(self.certificate)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secure_service(
    certificate: Certificate, request: pytest.FixtureRequest
) -> Iterator[FakeService]:
    """A TLS server, which asks for a client's certificate when the parameter says so."""
    mutual = getattr(request, "param", False)

    def credentials() -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials(
            [(certificate.key, certificate.certificate)],
            root_certificates=certificate.certificate if mutual else None,
            require_client_auth=mutual,
        )

    with serving(FakeService(), credentials) as running:
        yield running


def connect(service: FakeService, tls: TLS | bool | None) -> IngestClient:
    policy = RetryPolicy(patience=0)
    return IngestClient(service.target, "a-token", tls=tls, policy=policy)


def test_a_server_with_a_known_ca_is_trusted(
    secure_service: FakeService, certificate: Certificate
) -> None:
    with connect(secure_service, TLS(ca_file=certificate.cert_file)) as client:
        assert client.submit(new_event("a")).event_id


@pytest.mark.parametrize("tls", [None, False, True])
def test_no_other_connection_reaches_it(secure_service: FakeService, tls: bool | None) -> None:
    with connect(secure_service, tls) as client, pytest.raises(Unavailable):
        client.submit(new_event("a"))
    assert secure_service.calls == []


@pytest.mark.parametrize("secure_service", [True], indirect=True)
def test_a_client_shows_its_certificate(
    secure_service: FakeService, certificate: Certificate
) -> None:
    own = TLS(
        ca_file=certificate.cert_file,
        cert_file=certificate.cert_file,
        key_file=certificate.key_file,
    )
    with connect(secure_service, own) as client:
        assert client.submit(new_event("a")).event_id
    stranger = TLS(ca_file=certificate.cert_file)
    with connect(secure_service, stranger) as client, pytest.raises(Unavailable):
        client.submit(new_event("a"))


def test_half_a_key_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="go together"):
        TLS(cert_file="cert.pem")


@pytest.mark.parametrize(
    "target",
    [
        "localhost",
        "localhost:50051",
        "127.0.0.1:50051",
        "127.8.9.1",
        "[::1]:50051",
        "dns:localhost:1",
        "dns:///127.0.0.1:1",
        "unix:/run/ingest.sock",
    ],
)
def test_this_machine_is_known(target: str) -> None:
    assert is_loopback(target)


@pytest.mark.parametrize(
    "target",
    [
        "ingest.example",
        "ingest.example:50051",
        "localhost.example:1",
        "127.0.0.1.example:1",
        "10.0.0.1:50051",
        "0.0.0.0:50051",
        "[2001:db8::1]:1",
        "dns://192.0.2.1/localhost",
        "ipv4:127.0.0.1:1,192.0.2.1:1",
        "",
    ],
)
def test_any_other_place_is_foreign(target: str) -> None:
    assert not is_loopback(target)
