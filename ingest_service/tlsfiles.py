"""Whether the TLS files of the settings can be used; knows no gRPC."""

import ssl
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import PublicKeyAlgorithmOID

from eventstore.settings import Settings, SettingsError
from ingest_service.files import read_file

_FILES = "INGEST_TLS_CERT_FILE and INGEST_TLS_KEY_FILE"
_RSA_BITS = 2_048
_KEYS = f"not encrypted, of RSA with {_RSA_BITS} bits or more, P-256 or P-384"


def check_tls_files(settings: Settings) -> None:
    """Raise SettingsError for a file that cannot be used: gRPC would blame the address for it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for name in ("tls_cert_file", "tls_key_file", "tls_client_ca_file"):
        file: Path | None = getattr(settings, name)
        try:
            if file is not None:
                read_file(file)
        except OSError as error:
            # Not its name: somebody may have put the key itself there.
            problem = f"INGEST_{name.upper()} cannot be read: {error.strerror}"
            raise SettingsError(problem) from None
    try:
        # Without a password OpenSSL would ask for that of an encrypted key at the terminal.
        context.load_cert_chain(
            str(settings.tls_cert_file), str(settings.tls_key_file), password=""
        )
    except ssl.SSLError:
        raise SettingsError(f"{_FILES} must be a PEM certificate and its key, {_KEYS}") from None
    if settings.tls_cert_file is not None and not _is_served(settings.tls_cert_file):
        raise SettingsError(f"{_FILES} must have a key that gRPC serves: {_KEYS}")
    try:
        if settings.tls_client_ca_file is not None:
            context.load_verify_locations(
                cadata=read_file(settings.tls_client_ca_file).data.decode()
            )
    except (ssl.SSLError, ValueError):
        raise SettingsError("INGEST_TLS_CLIENT_CA_FILE must hold PEM certificates") from None


def _is_served(cert_file: Path) -> bool:
    """Whether gRPC's server and clients know this kind of key (grpcio 1.85; OpenSSL knows more)."""
    try:
        certificate = x509.load_pem_x509_certificate(read_file(cert_file).data)
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return False
    if certificate.public_key_algorithm_oid == PublicKeyAlgorithmOID.RSASSA_PSS:
        return False
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
    return isinstance(key, rsa.RSAPublicKey) and key.key_size >= _RSA_BITS
