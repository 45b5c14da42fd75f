"""Looks at what a server's listener needs: how it is reached, and the TLS files."""

import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from eventstore.settings import Settings, SettingsError
from ingest_service.files import read_file
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
        yield _lifetimes("certificate", settings.tls_cert_file)
    if settings.tls_key_file is not None:
        yield _mode(settings.tls_key_file)
    if settings.tls_client_ca_file is not None:
        yield _lifetimes("client CA", settings.tls_client_ca_file)


def _lifetimes(check: str, file: Path) -> Finding:
    """Judge every certificate of a file: whoever is shown a chain refuses all of it for one."""
    try:
        certificates = x509.load_pem_x509_certificates(read_file(file).data)
    except (OSError, ValueError):
        return Finding(check, Verdict.FAIL, "cannot be read as PEM certificates")
    # The one that ends first comes first: where all are in order, it alone is told.
    certificates.sort(key=lambda certificate: certificate.not_valid_after_utc)
    found = [_lifetime(check, certificate) for certificate in certificates]
    wrong = [finding for finding in found if finding.verdict is not Verdict.OK]
    if not wrong:
        return found[0]
    failed = any(finding.verdict is Verdict.FAIL for finding in wrong)
    text = "; ".join(finding.text for finding in wrong)
    return Finding(check, Verdict.FAIL if failed else Verdict.WARN, text)


def _lifetime(check: str, certificate: x509.Certificate) -> Finding:
    name = certificate.subject.rfc4514_string()
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = datetime.now(UTC)
    if not begins <= now <= ends:
        text = f"{name} is valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC only"
        return Finding(check, Verdict.FAIL, f"{text}: nobody accepts it now, renew it")
    return judged(
        check, ends - now > _RENEW, f"{name} ends on {ends:%Y-%m-%d}",
        "renew it; a server takes new files without a restart",
    )  # fmt: skip


def _mode(file: Path) -> Finding:
    mode = stat.S_IMODE(file.stat().st_mode)
    return judged(
        "TLS key", not mode & stat.S_IRWXO, f"mode {mode:o}",
        "others on this machine may use it: run `chmod o-rwx` on it",
    )  # fmt: skip
