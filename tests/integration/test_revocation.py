"""A revoked token is refused within five seconds, in calls and in open streams."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import grpc
import pytest

from ingest.v1 import ingest_service_pb2 as pb
from tests.kit.caller import Caller, event, refused
from tests.kit.server import Service, Start, record, settings_for
from tests.kit.waiting import eventually

#: Seconds within which a revocation is in force.
IN_FORCE = 5.0


@pytest.fixture
def revoked(tmp_path: Path) -> Path:
    """The file of revoked tokens."""
    file = tmp_path / "revoked.json"
    file.write_text("{}")
    return file


@pytest.fixture
def guarded(start_service: Start, database_url: str, broker_url: str, revoked: Path) -> Service:
    """A server that looks at the file."""
    file = str(revoked)
    return start_service(settings_for(database_url, broker_url, JWT_REVOCATION_FILE=file))


def is_refused(caller: Caller) -> bool:
    """Whether a submit is refused for the token."""
    try:
        caller.submit(event())
    except grpc.RpcError as error:
        return bool(error.code() is grpc.StatusCode.UNAUTHENTICATED)
    return False


def test_a_token_is_revoked_by_its_id(guarded: Service, revoked: Path) -> None:
    stolen, other = guarded.caller("alice", jti="stolen"), guarded.caller("alice", jti="other")
    assert not is_refused(stolen)

    revoked.write_text(json.dumps({"jti": ["stolen"]}))

    eventually(lambda: is_refused(stolen), timeout=IN_FORCE)
    assert refused(stolen.submit, event()).verdict == ("UNAUTHENTICATED", "TOKEN_INVALID")
    assert not is_refused(other)


@pytest.mark.parametrize("subject", ["alice", "*"])
def test_all_older_tokens_of_a_subject_are_revoked(
    guarded: Service, revoked: Path, subject: str
) -> None:
    """Up to the second before; one that was issued in the second itself is good."""
    cutoff = int(time.time()) - 30
    old = guarded.caller("alice", iat=cutoff - 1)
    new = guarded.caller("alice", iat=cutoff)

    revoked.write_text(json.dumps({"issued_before": {subject: cutoff}}))

    eventually(lambda: is_refused(old), timeout=IN_FORCE)
    assert not is_refused(new)


def test_an_open_stream_ends_when_its_token_is_revoked(guarded: Service, revoked: Path) -> None:
    caller = guarded.caller("alice", jti="stolen")
    messages: Queue[pb.StreamEventsRequest | None] = Queue()

    def sent() -> Iterator[pb.StreamEventsRequest]:
        while (message := messages.get()) is not None:
            yield message

    call = caller.stub.StreamEvents.future(sent(), metadata=caller.metadata, timeout=20)
    messages.put(pb.StreamEventsRequest(events=[event()]))
    revoked.write_text(json.dumps({"jti": ["stolen"]}))
    eventually(lambda: is_refused(caller), timeout=IN_FORCE)
    messages.put(pb.StreamEventsRequest(events=[event()]))

    assert refused(call.result).verdict == ("UNAUTHENTICATED", "TOKEN_INVALID")
    messages.put(None)


@pytest.mark.parametrize("mistake", ["{", '{"jti": ["stolen"], "jti": []}'])
def test_a_file_that_cannot_be_read_revokes_no_less(
    guarded: Service, revoked: Path, mistake: str
) -> None:
    stolen = guarded.caller("alice", jti="stolen")
    revoked.write_text(json.dumps({"jti": ["stolen"]}))
    eventually(lambda: is_refused(stolen), timeout=IN_FORCE)

    revoked.write_text(mistake)

    eventually(lambda: "revocations_unreadable" in guarded.process.stderr(), timeout=IN_FORCE)
    assert is_refused(stolen)


@pytest.mark.parametrize("kind", ["a FIFO", "a folder", "a device", "a large file"])
def test_what_cannot_be_a_file_of_revocations_is_told_once_and_holds_up_nothing(
    guarded: Service, revoked: Path, kind: str
) -> None:
    """What was revoked stays so, the next good file is taken, and the server ends in time."""
    stolen, other = guarded.caller("alice", jti="stolen"), guarded.caller("bob", jti="other")
    revoked.write_text(json.dumps({"jti": ["stolen"]}))
    eventually(lambda: is_refused(stolen), timeout=IN_FORCE)

    put_in_place_of(revoked, kind)
    told = eventually(lambda: record(guarded.process, "revocations_unreadable"), timeout=IN_FORCE)
    assert told is not None
    assert told["error"] == (
        "it is larger than 1048576 bytes" if kind == "a large file" else "it is no regular file"
    )
    assert told["ids"] == 1
    assert is_refused(stolen)
    # Looked at again and again, and told once.
    time.sleep(2.5)  # two looks: that nothing more is said has no end to wait for
    assert guarded.process.stderr().count("revocations_unreadable") == 1

    make_way(revoked)
    good = revoked.with_suffix(".new")
    good.write_text(json.dumps({"jti": ["other"]}))
    good.replace(revoked)
    eventually(lambda: is_refused(other), timeout=IN_FORCE)
    assert not is_refused(stolen)

    make_way(revoked)
    put_in_place_of(revoked, kind)
    eventually(
        lambda: guarded.process.stderr().count("revocations_unreadable") == 2, timeout=IN_FORCE
    )
    began = time.monotonic()
    assert guarded.stop() == 0
    assert time.monotonic() - began < 10


def put_in_place_of(file: Path, kind: str) -> None:
    """Put something else where a file is."""
    make_way(file)
    match kind:
        case "a FIFO":
            os.mkfifo(file)
        case "a folder":
            file.mkdir()
        case "a device":
            file.symlink_to("/dev/zero")
        case _:
            file.write_text(json.dumps({"jti": ["x" * (1 << 20)]}))


def make_way(file: Path) -> None:
    """Take away whatever is there."""
    if file.is_dir() and not file.is_symlink():
        file.rmdir()
    else:
        file.unlink(missing_ok=True)
