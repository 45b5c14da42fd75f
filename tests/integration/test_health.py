"""Readiness follows the database, liveness does not, and neither needs a token."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import Engine, text

from eventstore import migrations
from ingest.v1.event_pb2 import EventInput
from tests.hostile.frames import connections, message
from tests.kit.caller import event, refused
from tests.kit.databases import alter_database
from tests.kit.server import Service, Start, settings_for
from tests.kit.services import Postgres, start_postgres
from tests.kit.waiting import eventually

READY = ("", "ingest.v1.IngestService")


def health(server: Service, service: str = "") -> str:
    """What the server says of itself, by name."""
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        answer = stub.Check(request, timeout=5)  # type: ignore[attr-defined]  # a stub's
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL that this test may stop."""
    server = start_postgres()
    migrations.upgrade(server.url)
    yield server
    server.remove()


@pytest.mark.parametrize("name", [*READY, "liveness"])
def test_a_healthy_server_is_serving_without_a_token(service: Service, name: str) -> None:
    assert health(service, name) == "SERVING"


def test_a_service_that_is_not_here_is_not_found(service: Service) -> None:
    assert refused(health, service, "other.v1.Other").code is grpc.StatusCode.NOT_FOUND


def test_all_that_is_known_is_listed(service: Service) -> None:
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes]
    call = service.channel.unary_unary("/grpc.health.v1.Health/List")
    answer = health_pb2.HealthListResponse.FromString(call(b"", timeout=5))  # type: ignore[attr-defined]
    names = health_pb2.HealthCheckResponse.ServingStatus.Name
    assert {service: names(found.status) for service, found in answer.statuses.items()} == (
        dict.fromkeys([*READY, "liveness"], "SERVING")
    )


def test_readiness_follows_the_database_and_comes_back_alone(
    postgres: Postgres, redis_url: str, start_service: Start
) -> None:
    server = start_service(settings_for(postgres.url, redis_url))
    alice = server.caller()
    first = alice.submit(event(idempotency_key="before"))

    postgres.stop("immediate")
    eventually(lambda: {health(server, name) for name in READY} == {"NOT_SERVING"})
    assert health(server, "liveness") == "SERVING"
    for call in (lambda: alice.submit(event()), lambda: alice.get(first.event_id), alice.counts):
        refusal = refused(call)
        assert refusal.verdict == ("UNAVAILABLE", "STORAGE_UNAVAILABLE")
        assert refusal.retry_delay is not None
        assert 0 < refusal.retry_delay <= 5

    postgres.start()
    eventually(lambda: {health(server, name) for name in READY} == {"SERVING"})
    assert alice.submit(event(idempotency_key="before")).event_id == first.event_id
    assert alice.is_served()


def test_a_database_without_the_schema_is_not_ready(
    empty_database_url: str, redis_url: str, start_service: Start
) -> None:
    """The server waits for the migration; nothing has to be started again."""
    server = start_service(settings_for(empty_database_url, redis_url))
    assert health(server) == "NOT_SERVING"
    assert refused(server.caller().submit, event()).code is grpc.StatusCode.UNAVAILABLE

    migrations.upgrade(empty_database_url)

    eventually(lambda: health(server) == "SERVING")
    assert server.caller().is_served()


def test_a_database_that_a_later_version_migrated_is_ready(
    store: Engine, store_url: str, redis_url: str, start_service: Start
) -> None:
    """The database is migrated first, and then one server after another is replaced."""
    before = start_service(settings_for(store_url, redis_url))
    with store.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    after = start_service(settings_for(store_url, redis_url))
    for server in (before, after):
        assert health(server) == "SERVING"
        assert server.caller().is_served()


def test_a_database_that_takes_no_writes_is_not_ready(
    database_url: str, redis_url: str, start_service: Start
) -> None:
    """As a standby, where nothing can be stored though everything can be read."""
    alter_database(database_url, "SET default_transaction_read_only = on")
    server = start_service(settings_for(database_url, redis_url))
    assert {health(server, name) for name in READY} == {"NOT_SERVING"}
    assert refused(server.caller().submit, event()).code is grpc.StatusCode.UNAVAILABLE
    assert server.caller().counts() == {}

    alter_database(database_url, "RESET default_transaction_read_only")

    eventually(lambda: {health(server, name) for name in READY} == {"SERVING"})
    assert server.caller().is_served()


def test_a_watcher_hears_of_the_end(store_url: str, redis_url: str, start_service: Start) -> None:
    server = start_service(settings_for(store_url, redis_url))
    end_while_watched(server)


def test_a_watcher_who_reads_nothing_keeps_nobody_from_hearing_of_the_end(
    store_url: str, redis_url: str, start_service: Start
) -> None:
    """Nor the server from ending: it needs no token, and one such connection would be enough."""
    server = start_service(settings_for(store_url, redis_url))
    with connections(server.port, 1, window=0) as (deaf,):
        path = {":path": "/grpc.health.v1.Health/Watch"}
        deaf.open("", server.nobody(), message(b""), end=True, **path)
        eventually(lambda: bool(deaf.begun()))
        end_while_watched(server)


def test_a_server_that_drains_says_so_to_its_end(
    store_url: str, redis_url: str, start_service: Start
) -> None:
    """Its database answers all the time; a balancer that heard of that would send more calls."""
    server = start_service(settings_for(store_url, redis_url, DRAIN_SECONDS="4"))
    alice = server.caller()
    messages: SimpleQueue[Sequence[EventInput] | None] = SimpleQueue()
    with grpc.insecure_channel(server.address) as channel, ThreadPoolExecutor(1) as pool:
        stream = pool.submit(refused, alice.stream, iter(messages.get, None))
        messages.put([event()])
        eventually(lambda: alice.counts() == {"PENDING": 1})
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=20)  # type: ignore[attr-defined]  # a stub's
        told = [next(watch).status]
        server.process.terminate()
        with pytest.raises(grpc.RpcError):
            told.extend(answer.status for answer in watch)
        # Until this stream was told to end there was time for some looks at the database.
        assert stream.result().verdict == ("UNAVAILABLE", "DRAINING")
        messages.put(None)

    serving = health_pb2.HealthCheckResponse
    assert told == [serving.SERVING, serving.NOT_SERVING]
    assert server.process.wait() == 0


def end_while_watched(server: Service) -> None:
    """Tell a server to end; a watcher hears of it, and it does."""
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="")
        watch = stub.Watch(request, timeout=20)  # type: ignore[attr-defined]  # a stub's
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        server.process.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
    assert server.process.wait() == 0


@pytest.mark.parametrize("broker", ["redis://127.0.0.1:1/0", "redis://host.invalid:6379/0"])
def test_a_broker_that_is_away_changes_nothing_for_a_caller(
    store_url: str, start_service: Start, broker: str
) -> None:
    server = start_service(settings_for(store_url, broker))

    for _ in range(20):
        server.caller().submit(event(), timeout=1)
    assert health(server) == "SERVING"
