"""Keys with an id, and an identity provider's key server that may misbehave."""

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from tests.kit.tokens import make_token


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
        #: How an answer begins that then drips for ever; and how many do so now.
        self.drip = b""
        self.dripping = 0
        #: How many are waiting for an answer; while `answers` is not set, all of them.
        self.waiting = 0
        self.asked = 0
        self.answers = threading.Event()
        self.answers.set()
        self._ending = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.asked += 1
                owner.waiting += 1
                owner.answers.wait(30)
                owner.waiting -= 1
                if owner.drip:
                    owner.drip_to(self.wfile)
                    return
                if owner.raw:
                    self.wfile.write(owner.raw)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(owner.body)))
                self.end_headers()
                self.wfile.write(owner.body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
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

    def drip_to(self, client: BufferedIOBase) -> None:
        """Send a blank again and again, until the client goes."""
        self.dripping += 1
        with suppress(OSError):
            client.write(self.drip)
            while not self._ending.wait(0.2):
                client.write(b" ")
        self.dripping -= 1

    def close(self) -> None:
        """Answer nobody any more."""
        self._ending.set()
        self.answers.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def key_server() -> Iterator[KeyServer]:
    server = KeyServer()
    yield server
    server.close()
