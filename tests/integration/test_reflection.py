"""Reflection: off unless it is switched on, and then open to everybody."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.kit.caller import Caller, refused
from tests.kit.databases import fresh_database
from tests.kit.server import Service, running, settings_for


@pytest.fixture(scope="module")
def reflecting(
    postgres_url: str,
    migrated_template: Callable[[], str],
    redis_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A server where it is switched on."""
    with (
        fresh_database(postgres_url, migrated_template()) as url,
        running(
            tmp_path_factory.mktemp("reflecting"),
            settings_for(url, redis_url, REFLECTION="true"),
        ) as server,
    ):
        yield server


def services(server: Service, caller: Caller) -> list[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    call: Any = stub.ServerReflectionInfo
    answers = call(iter([ask]), metadata=caller.metadata, timeout=5)
    return [found.name for found in next(answers).list_services_response.service]


@pytest.mark.parametrize("with_token", [False, True])
def test_reflection_is_off_by_default(service: Service, with_token: bool) -> None:
    caller = service.caller() if with_token else service.nobody()

    assert refused(services, service, caller).code is grpc.StatusCode.UNIMPLEMENTED


def test_reflection_can_be_switched_on_and_needs_no_token(reflecting: Service) -> None:
    assert "ingest.v1.IngestService" in services(reflecting, reflecting.nobody())


@pytest.mark.parametrize("wire", [b"\xff", b"\x0a\x7fabc", b"\x0b"])
def test_bytes_that_are_no_message_are_refused(reflecting: Service, wire: bytes) -> None:
    call = reflecting.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", bytes, bytes
    )
    good = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()

    refusal = refused(lambda: list(call(iter([good, wire]), timeout=5)))

    assert refusal.verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert '"level": "error"' not in reflecting.process.stderr()
