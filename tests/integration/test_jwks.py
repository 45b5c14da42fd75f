"""JWK Sets of a running server: keys are changed under load, and a key server may misbehave."""

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol, Self

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from ingest.v1.event_pb2 import EventInput
from ingest_service.jwks import JwkSet, JwksUrl
from tests.kit.caller import Caller, event, refused
from tests.kit.certificates import Authority, write
from tests.kit.server import Service, Start, settings_for
from tests.kit.tokens import make_token
from tests.kit.waiting import eventually

#: Seconds after which an unknown key id has been looked for: the least pause is five.
LOOKED = 10.0
#: Seconds within which a call is answered, whatever the key server does.
AT_ONCE = 1.5


class Key:
    """A key pair with an id."""

    def __init__(self, kid: str) -> None:
        self.kid = kid
        self._private = ec.generate_private_key(ec.SECP256R1())

    @property
    def entry(self) -> dict[str, Any]:
        """The public key, as a JWK Set has it."""
        entry = ECAlgorithm.to_jwk(self._private.public_key(), as_dict=True)
        return entry | {"kid": self.kid, "use": "sig", "alg": "ES256"}

    def token(self, subject: str = "alice") -> str:
        """A good token, unlike the last one."""
        headers = {"kid": self.kid}
        number = str(time.perf_counter_ns())
        return make_token(subject, key=self._private, algorithm="ES256", headers=headers, n=number)


def key_set(*keys: Key) -> bytes:
    return json.dumps({"keys": [key.entry for key in keys]}).encode()


class KeyServer:
    """An identity provider's key server, which answers as the test wants."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        #: The whole answer, when it is not HTTP 200 with `body`.
        self.raw = b""
        self.body = b""
        #: How many are waiting for an answer; while `answers` is not set, all of them.
        self.waiting = 0
        self.asked = 0
        self.answers = threading.Event()
        self.answers.set()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.asked += 1
                owner.waiting += 1
                owner.answers.wait(30)
                owner.waiting -= 1
                if owner.raw:
                    self.wfile.write(owner.raw)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(owner.body)))
                self.end_headers()
                self.wfile.write(owner.body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # whoever asked may leave before the answer

        self._server = Quiet(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}/keys"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def publish(self, *keys: Key) -> None:
        """Answer with these keys."""
        self.body = key_set(*keys)

    def close(self) -> None:
        """Answer nobody any more."""
        self.answers.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def key_server() -> Iterator[KeyServer]:
    server = KeyServer()
    yield server
    server.close()


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
    return env | {"no_proxy": "127.0.0.1"}


def accepts(server: Service, token: str) -> bool:
    """Whether a call with this token is let in; it is answered at once in any case."""
    started = time.monotonic()
    try:
        Caller(server.channel, token).counts()
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED  # noqa: PT017
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
    server = start_service(env | {f"INGEST_JWT_JWKS_{kind}": where})
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


def answer(status: str, *headers: str, body: bytes = b"") -> bytes:
    lines = "\r\n".join([f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}"])
    return lines.encode() + b"\r\n\r\n" + body


KEY = Key("key")
ODD = {
    "an error": answer("500 Internal Server Error", body=key_set(KEY)),
    "not found": answer("404 Not Found"),
    "a redirect": answer("302 Found", "Location: file:///etc/passwd"),
    "a redirect to another host": answer("301 Moved", "Location: http://127.0.0.1:9/keys"),
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "noise": bytes(range(256)) * 8,
    "a status that is none": b"HTTP/1.1 abc\r\n\r\n",
    "a line without end": b"HTTP/1.1 200 OK\r\nx: " + b"x" * 100_000,
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1_000,
    "less than was promised": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
    "no text": answer("200 OK", body=b"\xff\xfe\x00"),
    "no JSON": answer("200 OK", body=b"<html></html>"),
    "no set": answer("200 OK", body=b'{"error": "none"}'),
    "an empty set": answer("200 OK", body=b'{"keys": []}'),
    "too much": answer("200 OK", body=b'{"keys": [' + b" " * (2 << 20) + b"]}"),
    "too deep": answer("200 OK", body=b"[" * 200_000),
}


@pytest.mark.parametrize("name", ODD)
async def test_whatever_a_key_server_answers_the_last_good_keys_stay(
    key_server: KeyServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """And the next good answer is taken."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    new = Key("new")
    keys = JwkSet("ES256", JwksUrl(key_server.url))
    key_server.publish(KEY)
    await keys.refresh()
    assert keys.key_for("key") is not None

    key_server.raw = ODD[name]
    await keys.refresh()
    assert keys.key_for("key") is not None

    key_server.raw = b""
    key_server.publish(new)
    await keys.refresh()
    assert keys.key_for("new") is not None
    assert keys.key_for("key") is None
    assert key_server.asked == 3


async def test_a_key_server_must_show_a_certificate_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, stranger = Authority(), Authority("stranger")
    for name, trusted in (("ours", authority), ("theirs", stranger)):
        (tmp_path / name).write_bytes(trusted.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write(tmp_path, *authority.issue()))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ExitStack() as ending:
        key_server = KeyServer(context)
        ending.callback(key_server.close)
        key_server.publish(KEY)
        keys = JwkSet("ES256", JwksUrl(key_server.url))

        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "theirs"))
        await keys.refresh()
        assert keys.key_for("key") is None

        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ours"))
        await keys.refresh()
        assert keys.key_for("key") is not None
