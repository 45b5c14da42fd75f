"""Looks at what a server's listener needs: how it is reached, and the TLS files."""

import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from eventstore.settings import Settings, SettingsError
from ingest_service.findings import Finding, Verdict, judged
from ingest_service.tlsfiles import check_tls_files

#: What is left of a certificate's time when it should be renewed.
_RENEW = timedelta(days=14)


def examine_listener(settings: Settings) -> Iterator[Finding]:
    """Yield the findings on the listener and, where there is TLS, on its files."""
    try:
        settings.require_tls_off_loopback()
        if settings.tls_cert_file is not None:
            check_tls_files(settings)
    except SettingsError as error:
        yield Finding("listener", Verdict.FAIL, str(error))
        return
    yield judged(
        "listener", not settings.in_the_clear,
        f"{settings.listen}, TLS {'on' if settings.tls_cert_file else 'off'}",
        "tokens travel in the clear from where TLS ends to here: keep that way private",
    )  # fmt: skip
    if settings.tls_cert_file is not None:
        yield _lifetime("certificate", settings.tls_cert_file)
    if settings.tls_key_file is not None:
        yield _mode(settings.tls_key_file)
    if settings.tls_client_ca_file is not None:
        yield _lifetime("client CA", settings.tls_client_ca_file)


def _lifetime(check: str, file: Path) -> Finding:
    """Judge the first certificate of a file: that of the server, or the authority itself."""
    try:
        certificate = x509.load_pem_x509_certificates(file.read_bytes())[0]
    except (OSError, ValueError):
        return Finding(check, Verdict.FAIL, "cannot be read as PEM certificates")
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = datetime.now(UTC)
    if not begins <= now <= ends:
        text = f"valid from {begins:%Y-%m-%d} to {ends:%Y-%m-%d %H:%M} UTC only"
        return Finding(check, Verdict.FAIL, f"{text}: nobody accepts it now, renew it")
    return judged(
        check, ends - now > _RENEW, f"ends on {ends:%Y-%m-%d}",
        "renew it; a server takes new files without a restart",
    )  # fmt: skip


def _mode(file: Path) -> Finding:
    mode = stat.S_IMODE(file.stat().st_mode)
    return judged(
        "TLS key", not mode & stat.S_IRWXO, f"mode {mode:o}",
        "others on this machine may use it: run `chmod o-rwx` on it",
    )  # fmt: skip
