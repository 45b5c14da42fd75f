"""Certificates made for one test."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
    CertificatePublicKeyTypes,
)
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


class Authority:
    """A certificate authority that lives as long as the test."""

    def __init__(self, name: str = "Test CA", *, days: int = 1) -> None:
        """Make the key and a self-signed certificate; negative days: run out."""
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._sign(
            self._name, self._key.public_key(), authority=True, days=days
        )

    @property
    def pem(self) -> bytes:
        """The certificate to trust."""
        return self._certificate.public_bytes(Encoding.PEM)

    def certify(self, other: "Authority", *, days: int = 1, since: int = -3) -> bytes:
        """Return a certificate of another authority: what stands in the middle of a chain."""
        certificate = self._sign(
            other._name, other._key.public_key(), authority=True, days=days, since=since
        )
        return certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        name: str = "localhost",
        *,
        days: int = 1,
        host: str = "",
        key: CertificateIssuerPrivateKeyTypes | None = None,
    ) -> tuple[bytes, bytes]:
        """Return certificate and key for `host` or the loopback address; negative days: run out."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key.public_key(), days=days, host=host)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return certificate.public_bytes(Encoding.PEM), private

    def _sign(
        self,
        subject: x509.Name,
        key: CertificatePublicKeyTypes,
        *,
        authority: bool = False,
        days: int = 1,
        since: int = -3,
        host: str = "",
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        loopback = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        alternatives = [x509.DNSName(host)] if host else loopback
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=since))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )


def write(folder: Path, certificate: bytes, key: bytes) -> tuple[Path, Path]:
    """Write certificate and key, replacing both atomically, and return their paths."""
    paths = folder / "cert.pem", folder / "key.pem"
    for path, content in zip(paths, (certificate, key), strict=True):
        new = path.with_suffix(".new")
        new.write_bytes(content)
        new.replace(path)
    return paths
