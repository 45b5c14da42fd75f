"""JWK Sets of a running server: keys are changed under load, and a key server may misbehave."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, Self

import grpc
import pytest

from ingest.v1.event_pb2 import EventInput
from tests.kit.caller import Caller, event, refused
from tests.kit.key_server import Key, KeyServer, key_set
from tests.kit.server import Service, Start, record, settings_for
from tests.kit.waiting import eventually

#: Plants for processes, such as a shorter time to read keys in.
INJECT = Path(__file__).parents[1] / "faults" / "inject"
#: Two seconds for a reading and half a second until the next, where the product has five and five.
HURRIED = {"PYTHONPATH": str(INJECT), "FAULTS_PLANT": "key-seconds=2"}
#: Seconds after which an unknown key id has been looked for: the least pause is five.
LOOKED = 10.0
#: Seconds within which a call is answered, whatever the key server does.
AT_ONCE = 1.5


class Published(Protocol):
    """A place where keys are published."""

    def publish(self, *keys: Key) -> None:
        """Replace the keys."""


class KeyFile:
    """A file that is replaced as an operator does: written beside, then moved."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def publish(self, *keys: Key) -> None:
        new = self._path.with_suffix(".new")
        new.write_bytes(key_set(*keys))
        new.replace(self._path)


@pytest.fixture
def env(database_url: str, broker_url: str) -> dict[str, str]:
    """Settings of a server that verifies ES256, but for the place of its keys."""
    env = settings_for(database_url, broker_url, JWT_ALGORITHM="ES256")
    del env["INGEST_JWT_SECRET"]
    # Where nobody is: what is on this machine is asked itself, and not by way of a proxy.
    return env | {"http_proxy": "http://127.0.0.1:1", "no_proxy": ""}


def accepts(server: Service, token: str) -> bool:
    """Whether a call with this token is let in; it is answered at once in any case."""
    started = time.monotonic()
    try:
        Caller(server.channel, token).counts()
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED  # noqa: PT017  # or it was let in
        return False
    finally:
        assert time.monotonic() - started < AT_ONCE
    return True


class Load:
    """Callers that never pause: each call has a new token of whoever signs at the moment."""

    def __init__(self, server: Service, signer: Callable[[], Key]) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self._server = server
        self._signer = signer
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(2)]
        self._threads.append(threading.Thread(target=self._stream))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self, calls: int = 50) -> None:
        """Wait until so many more calls were answered."""
        enough = self.answered + calls
        eventually(lambda: self.answered >= enough or self.failures)

    def _call(self) -> None:
        while not self._ending.is_set():
            caller = Caller(self._server.channel, self._signer().token())
            try:
                caller.submit(event())
                self.answered += 1
            except grpc.RpcError as error:
                self.failures.append(f"{error.code()} {error.details()}")

    def _stream(self) -> None:
        """One stream over the whole time; its token was good when it began."""

        def messages() -> Iterator[list[EventInput]]:
            while not self._ending.wait(0.02):
                yield [event()]

        try:
            Caller(self._server.channel, self._signer().token()).stream(messages(), timeout=60)
        except grpc.RpcError as error:
            self.failures.append(f"stream: {error.code()} {error.details()}")


@pytest.mark.parametrize("kind", ["FILE", "URL"])
def test_keys_are_changed_under_load_without_a_failure(
    env: dict[str, str], start_service: Start, key_server: KeyServer, tmp_path: Path, kind: str
) -> None:
    """Old; old and new; new. Only then is the old key refused, remembered tokens included."""
    old, new, stranger = Key("old"), Key("new"), Key("stranger")
    path = tmp_path / "keys.json"
    published: Published = KeyFile(path) if kind == "FILE" else key_server
    published.publish(old)
    where = str(path) if kind == "FILE" else key_server.url
    server = start_service(env | HURRIED | {f"INGEST_JWT_JWKS_{kind}": where})
    remembered = old.token()
    signer = old

    with Load(server, lambda: signer) as load:
        load.goes_on()
        assert accepts(server, remembered)
        assert not accepts(server, new.token())

        published.publish(old, new)
        eventually(lambda: accepts(server, new.token()), timeout=LOOKED, interval=0.1)
        assert accepts(server, old.token())
        load.goes_on()
        signer = new
        load.goes_on()

        published.publish(new)

        def old_is_refused() -> bool:
            # Whoever names a key that is not known has the set read again.
            assert not accepts(server, stranger.token())
            return not accepts(server, old.token())

        eventually(old_is_refused, timeout=LOOKED, interval=0.1)
        assert not accepts(server, remembered)
        load.goes_on()

    assert load.failures == []


def test_no_call_waits_for_a_key_server(
    env: dict[str, str], start_service: Start, key_server: KeyServer
) -> None:
    """It stalls from the start, so no key was ever read: everybody is refused, and at once."""
    key, stranger = Key("key"), Key("stranger")
    key_server.publish(key)
    key_server.answers.clear()
    server = start_service(env | {"INGEST_JWT_JWKS_URL": key_server.url})

    for _ in range(5):
        assert not accepts(server, key.token())
    assert refused(Caller(server.channel, key.token()).submit, event()).verdict == (
        "UNAUTHENTICATED",
        "TOKEN_INVALID",
    )
    key_server.answers.set()
    eventually(lambda: accepts(server, key.token()), timeout=LOOKED, interval=0.1)

    key_server.answers.clear()
    asked = key_server.asked

    def is_reading() -> bool:
        assert not accepts(server, stranger.token())
        return key_server.asked > asked and key_server.waiting > 0

    eventually(is_reading, timeout=LOOKED, interval=0.1)
    for _ in range(20):
        assert accepts(server, key.token())
        assert not accepts(server, stranger.token())
    assert key_server.asked <= asked + 2, "callers must not make it ask more often"


DRIPS = {
    "in a header": b"HTTP/1.1 200 OK\r\nx:",
    "in the body": b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
}


@pytest.mark.parametrize("where", DRIPS)
def test_a_key_server_that_drips_holds_up_no_start_no_withdrawal_and_no_end(
    env: dict[str, str], start_service: Start, key_server: KeyServer, where: str
) -> None:
    """Each byte comes in time, but the answer never ends: such a reading has failed.

    It has two seconds and not five, as it is waited out three times; that is still longer than a
    call may take, so one that waited for it would be seen.
    """
    old, new, stranger = Key("old"), Key("new"), Key("stranger")
    key_server.publish(old)
    key_server.drip = DRIPS[where]
    server = start_service(env | HURRIED | {"INGEST_JWT_JWKS_URL": key_server.url})

    told = record(server.process, "jwks_unreadable")
    assert told is not None
    assert told["error"] == "TimeoutError"
    assert not accepts(server, old.token())
    key_server.drip = b""
    eventually(lambda: accepts(server, old.token()), timeout=LOOKED, interval=0.1)

    def is_dripping() -> bool:
        assert not accepts(server, stranger.token())
        return key_server.dripping > 0

    key_server.drip = DRIPS[where]
    eventually(is_dripping, timeout=LOOKED, interval=0.1)
    key_server.drip = b""
    key_server.publish(new)
    # The reading that drips ends, and then the next is made, once somebody asks for a key.
    eventually(lambda: accepts(server, new.token()), timeout=2 * LOOKED, interval=0.1)
    assert not accepts(server, old.token())
    eventually(lambda: key_server.dripping == 0)

    key_server.drip = DRIPS[where]
    eventually(is_dripping, timeout=LOOKED, interval=0.1)
    assert server.stop() == 0
