"""The composition root: builds the parts, wires them, and runs until it is told to end."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import dramatiq
import structlog
from sqlalchemy import Connection

from eventstore.clock import DatabaseClock
from eventstore.engine import build_engine
from eventstore.errors import storage_errors
from eventstore.inspection import is_current, is_writable
from eventstore.settings import Settings
from ingest_service.answers import Answers
from ingest_service.auth import TokenVerifier, build_key_source
from ingest_service.calls import OpenCalls
from ingest_service.certificates import Certificates
from ingest_service.content import ContentReader
from ingest_service.decode import EventDecoder
from ingest_service.front import Front
from ingest_service.grpc_logs import quieten_grpc
from ingest_service.health import Health
from ingest_service.intake import Intake
from ingest_service.interceptors import Gate
from ingest_service.jwks import JwkSet
from ingest_service.limits import UserLimits
from ingest_service.newcomer import embedded_url
from ingest_service.offload import Offload
from ingest_service.reader import Reader
from ingest_service.revocation import Revocations
from ingest_service.server import build_server, limits_in_force, raise_open_files
from ingest_service.servicer import IngestServicer
from ingest_service.supervisor import ends
from ingest_service.writer import Writer
from worker.broker import build_broker
from worker.dispatch import BackgroundDispatcher, Dispatcher
from worker.runtime import Runtime

log = structlog.get_logger()

#: Large messages that wait to be decoded.
_WAITING_MESSAGES = 128
#: Answers that wait to be encoded: more than there is room for.
_WAITING_ANSWERS = 1_024
#: Transactions in which the intake writes at the same time; SQLite allows one.
_WRITERS = 2
#: Part of the drain time after which open streams are told to go elsewhere.
_STREAMS_SHARE = 0.7
#: Seconds in which gRPC sends what was answered last.
_STOP_SECONDS = 0.5
#: Seconds in which the dispatcher sends what waits at the end; the sweeper finds the rest.
_DISPATCH_STOP_SECONDS = 2.0


async def serve(
    settings: Settings, *, reuse_port: bool = False, on_ready: Callable[[int], None]
) -> None:
    """Run the server against the configured database and broker, until told to stop by a signal.

    `on_ready` gets the port, once calls are taken. Raises SettingsError for settings that cannot
    work.
    """
    broker = build_broker(settings.require_broker_url())
    told = _told_by_signals()
    async with _server(
        settings, settings.require_database_url(), broker, reuse_port=reuse_port
    ) as front:
        on_ready(front.port)
        # Of several, each is told by whoever tells the whole group, and by the supervisor again.
        await _told_to_stop(front, told, again=reuse_port)


async def serve_embedded(settings: Settings, *, on_ready: Callable[[int], None]) -> None:
    """Run server, worker and sweeper in this process, on SQLite in the data directory."""
    from eventstore import migrations  # noqa: PLC0415  # `serve` goes without Alembic

    told = _told_by_signals()
    url = embedded_url(settings.data_dir)
    with storage_errors():
        migrations.upgrade(url)
    engine = build_engine(url, name="ingest-worker", pool_size=settings.worker_threads + 2)
    broker = build_broker("stub://")
    Runtime(settings, engine, broker).install()
    # Dramatiq's command line does this for its processes; it starts the sweeper.
    broker.emit_after("process_boot")
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=100)
    worker.start()
    try:
        async with _server(settings, url, broker, reuse_port=False) as front:
            on_ready(front.port)
            await _told_to_stop(front, told)
    finally:
        await asyncio.to_thread(worker.stop)


def sweep_once(settings: Settings) -> int:
    """Sweep until nothing is due, keep house, and return how many events were taken."""
    engine = build_engine(
        settings.require_database_url(), name="ingest-sweep", pool_size=2, keyed=True
    )
    try:
        runtime = Runtime(settings, engine, build_broker(settings.require_broker_url()))
        taken = total = runtime.sweeper.sweep()
        while taken:
            taken = runtime.sweeper.sweep()
            total += taken
        while runtime.housekeeper.keep():
            pass
        return total
    finally:
        engine.dispose()


def _tell_start(settings: Settings, port: int) -> None:
    log.info("server_limits", **limits_in_force(settings))
    log.info("server_started", listen=settings.listen, port=port, tls=bool(settings.tls_cert_file))
    if unknown := settings.unknown():
        log.warning("settings_unknown", names=unknown)
    if settings.in_the_clear:
        log.warning("plaintext_off_loopback", listen=settings.listen)


@asynccontextmanager
async def _server(
    settings: Settings, url: str, broker: dramatiq.Broker, *, reuse_port: bool
) -> AsyncIterator[Front]:
    """Build and start everything in front of the worker, and drain it at the end."""
    raise_open_files(settings)
    certificates = Certificates(settings) if settings.tls_cert_file else None
    keys = build_key_source(settings)
    revocations = Revocations(settings.jwt_revocation_file)
    clock = DatabaseClock()
    writing = build_engine(url, name="ingest-intake", pool_size=_WRITERS, keyed=True)
    reading = build_engine(url, name="ingest-reader", pool_size=settings.read_threads)
    probing = build_engine(url, name="ingest-health", pool_size=1)
    reader = Reader(reading, threads=settings.read_threads)
    prober = Reader(probing, threads=1)
    dispatcher = BackgroundDispatcher(Dispatcher(broker, chunk_rows=settings.chunk_rows))
    writers = [
        Writer(writing, clock, grace_seconds=settings.dispatch_grace_seconds)
        for _ in range(1 if writing.dialect.name == "sqlite" else _WRITERS)
    ]
    intake = Intake(writers, settings, dispatcher.dispatch)
    limits = UserLimits(settings)
    decoder = Offload("decoder", threads=1, waiting=_WAITING_MESSAGES, rests=True)
    encoder = Offload("encoder", threads=1, waiting=_WAITING_ANSWERS, rests=True)
    answers = Answers()
    servicer = IngestServicer(
        settings,
        intake,
        EventDecoder(clock),
        reader,
        ContentReader(reader, answers, encoder),
        limits,
        decoder,
    )
    health = Health(lambda: prober.read("", _is_ready, clock))
    calls = OpenCalls()
    verifier = TokenVerifier(settings, keys, revocations)
    gate = Gate(verifier, calls, answers, settings)
    quieten_grpc()
    front = Front(
        lambda listen: build_server(
            listen,
            settings,
            servicer,
            gate,
            health,
            certificates=certificates,
            reuse_port=reuse_port,
        ),
        settings.listen,
    )
    dispatcher.start()
    intake.start()
    background = [
        asyncio.create_task(health.run()),
        asyncio.create_task(revocations.keep_fresh()),
        asyncio.create_task(limits.count_pending(reader)),
    ]
    if isinstance(keys, JwkSet):
        await keys.refresh()
        background.append(asyncio.create_task(keys.keep_fresh()))
    await health.look()
    await front.start()
    _tell_start(settings, front.port)
    try:
        yield front
    finally:
        # Not ready first, so that a balancer looks elsewhere; then no new calls, and the open
        # ones end; then what is left of the intake and of the dispatcher.
        await health.stop()
        told = settings.drain_seconds * _STREAMS_SHARE
        telling = asyncio.get_running_loop().call_later(told, servicer.end_streams)
        await calls.drain(settings.drain_seconds)
        telling.cancel()
        await front.stop(_STOP_SECONDS)
        await intake.drain()
        await asyncio.to_thread(dispatcher.stop, _DISPATCH_STOP_SECONDS)
        for task in background:
            task.cancel()
        for part in (reader, prober, decoder, encoder):
            await asyncio.to_thread(part.close)
        for engine in (writing, reading, probing):
            engine.dispose()
        log.info("server_stopped")


def _told_by_signals() -> asyncio.Event:
    """Return what the signals set; one that comes during the start is kept for later."""
    told = asyncio.Event()
    for number in ends():
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    return told


async def _told_to_stop(front: Front, told: asyncio.Event, *, again: bool = False) -> None:
    """Wait until told to stop by a signal; a second one ends the process at once, unless `again`.

    Raises ServerLost when there is nothing to wait for any more.
    """
    loop = asyncio.get_running_loop()
    waiting = {asyncio.create_task(told.wait()), asyncio.create_task(front.keep())}
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
        for number in () if again else ends():
            loop.remove_signal_handler(number)
            # SIGINT would be a KeyboardInterrupt, which cancels the calls: their clients would take
            # it for their own doing. A terminal that is closed may say so twice.
            is_closed = number is signal.SIGHUP
            signal.signal(number, signal.SIG_IGN if is_closed else signal.SIG_DFL)
        log.info("draining")
    for task in done:
        task.result()


def _is_ready(connection: Connection, clock: DatabaseClock) -> bool:
    # Events are stamped before the intake first connects: not by this machine's wall clock.
    if not clock.synchronised:
        clock.synchronise(connection)
    return is_current(connection) and is_writable(connection)
