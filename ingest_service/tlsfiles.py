"""Whether the TLS files of the settings can be used; knows no gRPC."""

import ssl
from pathlib import Path

from eventstore.settings import Settings, SettingsError
from ingest_service.files import read_file


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
        raise SettingsError(
            "INGEST_TLS_CERT_FILE and INGEST_TLS_KEY_FILE must be a PEM certificate and its key,"
            " not encrypted"
        ) from None
    try:
        if settings.tls_client_ca_file is not None:
            context.load_verify_locations(
                cadata=read_file(settings.tls_client_ca_file).data.decode()
            )
    except (ssl.SSLError, ValueError):
        raise SettingsError("INGEST_TLS_CLIENT_CA_FILE must hold PEM certificates") from None
