"""The TLS files as gRPC takes them: read at the start, and again when one of them changed."""

from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import grpc
import structlog

from eventstore.settings import Settings, SettingsError
from ingest_service.files import Aside, cause, read_file
from ingest_service.tlsfiles import check_tls_files

log = structlog.get_logger()

#: Another one when a TLS file is another one, or was written to.
_Stamps: TypeAlias = list[tuple[int, int, int]]

#: Seconds that a handshake waits for the TLS files to be looked at.
_RELOAD_SECONDS = 0.5


class _Loaded(NamedTuple):
    """What the files held when all of them could be used."""

    stamps: _Stamps
    key: bytes
    certificate: bytes
    client_ca: bytes | None


class Certificates:
    """The newest files that could be used; whoever is connected is not touched by others.

    They outlive a server: the one that takes its place needs no files of the moment.
    """

    def __init__(self, settings: Settings) -> None:
        """Read the files; raises SettingsError when they cannot be used."""
        if settings.tls_cert_file is None or settings.tls_key_file is None:
            raise SettingsError("set INGEST_TLS_CERT_FILE and INGEST_TLS_KEY_FILE together")
        self._settings = settings
        self._cert, self._key = settings.tls_cert_file, settings.tls_key_file
        self._client_ca = settings.tls_client_ca_file
        self._aside = Aside("tls-files")
        self._problem = ""
        # Names a file that is not there, which looking at its time would not.
        check_tls_files(settings)
        try:
            self._loaded = self._load()
        except (OSError, ValueError) as error:
            problem = f"INGEST_TLS_CERT_FILE and the other TLS files: {cause(error)}"
            raise SettingsError(problem) from None

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials of one server, which asks at each handshake for what is new."""
        shown = self._loaded

        def newer() -> Any:
            nonlocal shown
            self._refresh()
            if self._loaded is shown:
                return None
            shown = self._loaded
            return _configuration(shown)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(shown),
            newer,
            require_client_authentication=self._client_ca is not None,
        )

    def _refresh(self) -> None:
        """Read the files if one of them changed; what cannot be used is told, once."""
        try:
            changed = self._aside.wait_for(self._load_if_changed, _RELOAD_SECONDS)
        except (OSError, RuntimeError, SettingsError, ValueError) as error:
            # Perhaps half-way through a replacement: the next handshake asks again.
            problem = str(error) if isinstance(error, SettingsError) else cause(error)
            if problem != self._problem:
                log.warning("tls_files_unreadable", error=problem)
            self._problem = problem
            return
        self._problem = ""
        if changed is not None:
            self._loaded = changed

    def _load_if_changed(self) -> _Loaded | None:
        return None if self._read_stamps() == self._loaded.stamps else self._load()

    def _load(self) -> _Loaded:
        stamps = self._read_stamps()
        # gRPC would take what it cannot use, of the client CA without a word, and then nobody.
        check_tls_files(self._settings)
        loaded = _Loaded(
            stamps,
            read_file(self._key).data,
            read_file(self._cert).data,
            read_file(self._client_ca).data if self._client_ca else None,
        )
        if self._read_stamps() != stamps:
            raise ValueError("they are being replaced")
        return loaded

    def _read_stamps(self) -> _Stamps:
        files: list[Path | None] = [self._cert, self._key, self._client_ca]
        found = [file.stat() for file in files if file]
        return [(status.st_mtime_ns, status.st_size, status.st_ino) for status in found]


def _configuration(loaded: _Loaded) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(loaded.key, loaded.certificate)], root_certificates=loaded.client_ca
    )
