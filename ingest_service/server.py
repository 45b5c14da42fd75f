"""The gRPC server: options, credentials, services; no limit is left to a default."""

import resource
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from eventstore.settings import Settings, SettingsError
from ingest.v1 import ingest_service_pb2_grpc
from ingest_service import answers, decode, jsontext, parse
from ingest_service.auth import MAX_TOKEN
from ingest_service.certificates import Certificates
from ingest_service.health import Health
from ingest_service.interceptors import HEALTH_SERVICE, Gate
from ingest_service.servicer import MAX_PAGE_SIZE, IngestServicer

#: Bytes of one message; the largest event is one message of its own.
MAX_MESSAGE_BYTES = 4 << 20
#: Bytes of metadata; equal limits, because between two different ones gRPC refuses at random.
MAX_METADATA_BYTES = 8_192
#: Open calls on one connection.
MAX_STREAMS = 256
#: Files that a server opens beside its clients' connections, with room to spare.
_OWN_FILES = 200
#: In place of no limit, which is a negative number.
_MANY_FILES = 1 << 30

#: gRPC settings of every server; the benchmark's no-op server has the same.
OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    # Without these two, one stream that nobody reads may hold some 10 MB in the server.
    ("grpc.http2.lookahead_bytes", 65_536),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # What gRPC 1.85 in truth waits by for the answer, a minute by default.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients are told to ping every 30 seconds; this must be less.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_connection_idle_ms", 300_000),
)
#: Limits that the settings choose.
_CHOSEN = (
    "user_events_per_second",
    "user_bytes_per_second",
    "user_reads_per_second",
    "user_streams",
    "user_pending_events",
    "stream_idle_seconds",
    "stream_max_seconds",
    "unary_max_seconds",
    "waiting_rows",
    "waiting_bytes",
    "group_rows",
    "group_bytes",
    "read_threads",
    "jwt_max_ttl_seconds",
    "drain_seconds",
)


def limits_in_force(settings: Settings) -> dict[str, float]:
    """Return every limit that a client can meet, for the log."""
    options = dict(OPTIONS)
    chosen: dict[str, float] = {name: getattr(settings, name) for name in _CHOSEN}
    return chosen | {
        "message_bytes": MAX_MESSAGE_BYTES,
        "metadata_bytes": MAX_METADATA_BYTES,
        "token_characters": MAX_TOKEN,
        "connection_streams": MAX_STREAMS,
        "connection_idle_seconds": options["grpc.max_connection_idle_ms"] / 1_000,
        "handshake_seconds": options["grpc.server_handshake_timeout_ms"] / 1_000,
        "batch_events": parse.MAX_BATCH,
        "page_events": MAX_PAGE_SIZE,
        "event_bytes": decode.MAX_EVENT_BYTES,
        "text_bytes": decode.MAX_TEXT_BYTES,
        "attributes": decode.MAX_ATTRIBUTES,
        "attribute_bytes": decode.MAX_ATTRIBUTE_BYTES,
        "answer_bytes": answers.MOST_BYTES,
        "json_levels": jsontext.MAX_DEPTH,
        "connections": _connections(settings),
        "open_files": _open_files(),
    }


def _connections(settings: Settings) -> int:
    """Return how many connections clients may have, so that files are left for the database.

    Twice: a server that took the place of another one counts anew while those of the other end.
    """
    files = _open_files()
    return min(settings.max_connections, max((files - _OWN_FILES) // 2, files // 4))


def raise_open_files(settings: Settings) -> None:
    """Allow this process as many open files as its connections need, if that is its to allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * settings.max_connections + _OWN_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        # Where the kernel allows less than it says, there are fewer connections.
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _open_files() -> int:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MANY_FILES if files == resource.RLIM_INFINITY else files


def build_server(
    listen: str,
    settings: Settings,
    servicer: IngestServicer,
    gate: Gate,
    health: Health,
    *,
    certificates: Certificates | None,
    reuse_port: bool,
) -> tuple[grpc.aio.Server, int]:
    """Return a server that is bound to `listen` and not started, and its port.

    Without certificates it speaks no TLS. Raises SettingsError when it cannot bind.
    """
    # Two servers on one port split its connections without a word, unless they mean to.
    options = [
        *OPTIONS,
        ("grpc.so_reuseport", int(reuse_port)),
        # What is beyond is closed as soon as it is there.
        ("grpc.max_allowed_incoming_connections", _connections(settings)),
    ]
    server = grpc.aio.server(interceptors=[gate], options=options)
    unregistered = cast("grpc.aio.Server", _Unregistered(server))
    ingest_service_pb2_grpc.add_IngestServiceServicer_to_server(servicer, unregistered)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, unregistered)
    if settings.reflection:
        names = ("ingest.v1.IngestService", HEALTH_SERVICE, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(  # type: ignore[no-untyped-call]  # so it is in the stubs
            reflection.aio.ReflectionServicer(names), unregistered
        )
    try:
        if certificates is None:
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, certificates.credentials())
    except RuntimeError:
        raise SettingsError(f"cannot listen on {listen}; set INGEST_LISTEN") from None
    return server, port


class _Unregistered:
    """A server as generated code sees it, which registers no method with gRPC's core by name.

    grpcio 1.85 waits for each registered method separately. When a call ends the server (see
    `Front`), it frees what the core will write to when it gives up waiting, and memory is broken.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Leave it at the generic ones."""
