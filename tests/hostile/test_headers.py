"""Headers of bytes that are no text: not logged, counted, and no reason to end anything."""

import base64
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.v1 import ingest_service_pb2 as pb
from tests.hostile.canaries import SECRET, TOKEN, leaks
from tests.hostile.frames import Connection, message
from tests.kit.caller import Caller, event
from tests.kit.server import Service, records, running, settings_for
from tests.kit.tokens import make_token
from tests.kit.waiting import eventually

SUBMIT = message(pb.SubmitEventRequest(event=event()).SerializeToString())
#: Their values mean something to gRPC.
KNOWN = {"te", "host", "content-type", "grpc-timeout", "grpc-encoding", "connection"}


@pytest.fixture
def own(store_url: str, redis_url: str, tmp_path: Path) -> Iterator[Service]:
    """A server that logs everything, on a secret of its own."""
    with running(tmp_path, settings_for(store_url, redis_url, JWT_SECRET=SECRET)) as started:
        yield started


def status(service: Service, caller: Caller, headers: dict[str, Any]) -> str:
    """Submit with these headers and return the status."""
    with closing(Connection(service.port)) as made:
        stream = made.open("SubmitEvent", caller, SUBMIT, end=True, **headers)
        eventually(lambda: stream in made.ended() or made.is_closed)
        return made.ended().get(stream, "closed")


def test_a_header_that_is_no_text_is_not_logged(own: Service) -> None:
    """Of a good token with a byte too many, two hundred characters would be enough."""
    token = make_token("alice", key=SECRET, jti=TOKEN)
    alice, nobody = Caller(own.channel, token), own.nobody()

    for odd in (f"Bearer {token}\udcff", f"Bearer \udc80{token}", f"\udcff{token}"):
        assert status(own, nobody, {"authorization": odd}) == "16"
    assert status(own, alice, {"x_odd": f"{TOKEN}\udcff"}) == "0"

    logged = own.process.output()
    assert "metadata_not_utf8" in logged
    assert leaks(logged) == []
    assert not any(part in logged for part in token.split("."))
    assert '"level": "error"' not in logged


def test_many_such_headers_are_few_lines(own: Service) -> None:
    """Anybody can send them, sixty in a call."""
    odd = {f"x_{number}": "\udcff" for number in range(60)}
    for _ in range(50):
        assert status(own, own.nobody(), odd) == "16"
    lines = [one for one in records(own.process) if one["level"] != "debug"]

    eventually(
        lambda: (
            sum(one["count"] for one in records(own.process) if one["event"] == "metadata_not_utf8")
            == 3_000
        )
    )
    assert len(lines) < 50


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=st.one_of(
        st.from_regex(r"[a-z0-9.-]{1,20}", fullmatch=True),
        st.from_regex(r"(grpc|x)-[a-z0-9.-]{1,10}(-bin)?", fullmatch=True),
        st.sampled_from(["grpc-trace-bin", "grpc-tags-bin", "grpc-accept-encoding", "user-agent"]),
    ).filter(lambda name: name not in KNOWN),
    value=st.binary(max_size=200).map(
        lambda raw: bytes(byte for byte in raw if byte >= 32 and byte != 127)
    ),
)
def test_a_header_of_any_name_and_bytes_changes_nothing(
    service: Service, name: str, value: bytes
) -> None:
    """Binary ones are in base64, without which gRPC does not look at a call."""
    if name.endswith("-bin"):
        value = base64.b64encode(value)
    text = value.decode(errors="surrogateescape")

    assert status(service, service.caller("somebody"), {name: text}) == "0"
