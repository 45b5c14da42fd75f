"""Opening a gRPC channel to the service: addresses, TLS and the settings of a connection."""

from dataclasses import dataclass
from ipaddress import ip_address
from os import PathLike
from pathlib import Path

import grpc

#: Connection settings. Names that end in _ms are milliseconds.
_OPTIONS: tuple[tuple[str, int], ...] = (
    # Finds a dead connection within 40 s; the server allows a ping every 10 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Keep pinging while a call waits without traffic; the default stops after two pings.
    ("grpc.http2.max_pings_without_data", 0),
    # A page of large events; the server takes 4 MiB in the other direction.
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    # Reconnect soon after a restart: gRPC's own pauses start at 1 s and grow to 120 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """Files for a TLS connection, all PEM.

    Without `ca_file` gRPC's built-in roots are trusted, or those in the file that the
    environment variable GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names. `cert_file` and `key_file` are
    the client's own, for servers that ask for one (mTLS).
    """

    ca_file: str | PathLike[str] | None = None
    cert_file: str | PathLike[str] | None = None
    key_file: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        """Refuse half a key pair.

        Raises:
            ValueError: one of `cert_file` and `key_file` is missing.

        """
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files."""
        ca, cert, key = (
            None if path is None else Path(path).read_bytes()
            for path in (self.ca_file, self.cert_file, self.key_file)
        )
        return grpc.ssl_channel_credentials(
            root_certificates=ca, private_key=key, certificate_chain=cert
        )


def open_channel(target: str, *, tls: TLS | bool | None) -> grpc.Channel:
    """Open a channel; it connects with the first call.

    `tls` None means plaintext to this machine and TLS to any other; False is plaintext wherever
    the target is, which shows the token to everybody on the way.
    """
    local = is_loopback(target)
    # A proxy from the environment is not asked for the way to this machine itself.
    options = (*_OPTIONS, ("grpc.enable_http_proxy", 0)) if local else _OPTIONS
    if tls is None:
        tls = not local
    if tls is False:
        return grpc.insecure_channel(target, options=options)
    files = TLS() if tls is True else tls
    return grpc.secure_channel(target, files.credentials(), options=options)


def is_loopback(target: str) -> bool:
    """Whether a target is certainly this machine: localhost, a loopback address or a socket."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    address = target.removeprefix("dns:").removeprefix("///")
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        host = address
    host = host.removeprefix("[").removesuffix("]")
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
