"""Asks a running server on this machine how it is, over TLS as well."""

import re

import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from eventstore.settings import Settings, SettingsError
from ingest_service.files import read_file

_TIMEOUT = 3.0


def reachable(listen: str) -> str:
    """Return an address of this machine for a listener on all of its addresses."""
    return re.sub(r"^(0\.0\.0\.0|\[::\])(?=:)", "127.0.0.1", listen)


def ask(settings: Settings, service: str, target: str | None = None) -> tuple[str, bool]:
    """Return the status by name (as in grpc.health.v1, or of the failed call), and if it is good.

    Without a `target` the server is where the settings let it listen. Raises SettingsError when the
    TLS files cannot be used.
    """
    with _channel(settings, target or reachable(settings.listen)) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]  # the package's stubs lack it
                request, timeout=_TIMEOUT
            )
        except grpc.RpcError as error:
            return error.code().name, False
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return name, name == "SERVING"


def _channel(settings: Settings, address: str) -> grpc.Channel:
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return grpc.insecure_channel(address)
    # The probe runs beside the server: it trusts that very certificate and no other, whatever name
    # it was issued to, and shows it where a client needs one.
    try:
        certificate = read_file(settings.tls_cert_file).data
        key = read_file(settings.tls_key_file).data if settings.tls_client_ca_file else None
        name = _name(certificate)
    except (OSError, ValueError) as error:
        raise SettingsError(f"INGEST_TLS_CERT_FILE cannot be used: {error}") from None
    credentials = grpc.ssl_channel_credentials(certificate, key, certificate if key else None)
    options = [("grpc.ssl_target_name_override", name)] if name else []
    return grpc.secure_channel(address, credentials, options)


def _name(certificate: bytes) -> str:
    """Return a name that a certificate was issued to, empty when it has none."""
    parsed = x509.load_pem_x509_certificate(certificate)
    try:
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    return next(iter(names.get_values_for_type(x509.DNSName)), "").replace("*", "host")
