"""Who may call: nobody without a good token, and for every bad one the same few words."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm

from ingest.v1 import ingest_service_pb2
from ingest.v1.event_pb2 import EventInput
from ingest_service.interceptors import SCOPES
from tests.hostile.bad_tokens import Sign, assemble, bad_tokens, es256, hs256, text
from tests.kit.caller import Caller, Refusal, event, refusal_of, refused
from tests.kit.server import Service, Start, running, settings_for
from tests.kit.tokens import SECRET, claims, make_token
from tests.kit.waiting import eventually

HS256 = hs256(SECRET.encode())
SERVICE = ingest_service_pb2.DESCRIPTOR.services_by_name["IngestService"]
METHODS = [method.name for method in SERVICE.methods]
FORGED = make_token(key="x" * 40)


def with_token(server: Service, token: str) -> Caller:
    return Caller(server.channel, token)


class Trap:
    """An address on this machine that counts who comes; nobody should."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.visits = 0
        self._thread = threading.Thread(target=self._count)
        self._thread.start()

    def visit(self) -> None:
        """Come here, as a server would that follows what a token says."""
        socket.create_connection(self._listener.getsockname(), 5).close()

    def close(self) -> None:
        """Stop counting."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _count(self) -> None:
        with suppress(OSError):
            while True:
                self._listener.accept()[0].close()
                self.visits += 1


@pytest.fixture
def trap() -> Iterator[Trap]:
    """A listener that no token may lead to."""
    made = Trap()
    yield made
    made.close()


def check(server: Service, algorithm: str, sign: Sign, trap: Trap, public: bytes = b"") -> int:
    """Try every bad token; one text for all of them, so that nobody learns what was wrong."""
    good = assemble(text({"alg": algorithm, "typ": "JWT"}), text(claims()), sign)
    assert with_token(server, good).is_served(), "the control must pass"
    accepted, answers = [], set()
    count = 0
    for name, token in bad_tokens(algorithm, sign, public, trap=trap.address):
        count += 1
        try:
            with_token(server, token).submit(event())
            accepted.append(name)
        except grpc.RpcError as error:
            refusal = refusal_of(error)
            if refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                continue  # longer than metadata may be
            answers.add((refusal.code.name, refusal.text, refusal.retry_delay))
            assert refusal.reason in {"TOKEN_INVALID", "TOKEN_MISSING", "TOKEN_EXPIRED"}, name
    assert accepted == []
    assert answers == {("UNAUTHENTICATED", "authentication failed", None)}
    assert with_token(server, good).is_served()
    assert trap.visits == 0, "a token chose where to look for keys"
    trap.visit()
    eventually(lambda: trap.visits == 1)
    return count


def test_no_bad_token_is_accepted_where_a_secret_signs(service: Service, trap: Trap) -> None:
    assert check(service, "HS256", HS256, trap) >= 100


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(params=["PUBLIC_KEY_FILE", "JWKS_FILE"])
def es256_server(
    request: pytest.FixtureRequest,
    database_url: str,
    redis_url: str,
    start_service: Start,
    tmp_path: Path,
    key: ec.EllipticCurvePrivateKey,
) -> Service:
    """A server that verifies with a public key, given as PEM or as the only one of a JWK Set."""
    file = tmp_path / "key"
    file.write_bytes(public_pem(key) if "KEY" in request.param else key_set(key))
    settings = {"JWT_ALGORITHM": "ES256", f"JWT_{request.param}": str(file)}
    env = settings_for(database_url, redis_url, **settings)
    del env["INGEST_JWT_SECRET"]
    return start_service(env)


def key_set(key: ec.EllipticCurvePrivateKey) -> bytes:
    entry = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return json.dumps({"keys": [entry | {"kid": "the only one"}]}).encode()


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_no_bad_token_is_accepted_where_a_public_key_verifies(
    es256_server: Service, key: ec.EllipticCurvePrivateKey, trap: Trap
) -> None:
    assert check(es256_server, "ES256", es256(key), trap, public_pem(key)) >= 100
    assert refused(es256_server.caller().submit, event()).reason == "TOKEN_INVALID"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("token", ["", "bad", FORGED], ids=["none", "bad", "forged"])
def test_every_method_asks_for_a_token_before_it_reads(
    service: Service, method: str, token: str
) -> None:
    """Also a stream that never sends anything is refused at once."""
    name = f"/{SERVICE.full_name}/{method}"
    metadata = [("authorization", f"Bearer {token}")] if token else []
    call = service.channel.stream_unary(name, _same, _same)

    def silent() -> Iterator[bytes]:
        time.sleep(3)  # the silence that is tested
        yield b""

    started = time.monotonic()
    refusal = refused(call, silent(), metadata=metadata, timeout=10)

    assert time.monotonic() - started < 2
    assert refusal.verdict == (
        "UNAUTHENTICATED",
        "TOKEN_INVALID" if token else "TOKEN_MISSING",
    )


def _same(wire: bytes) -> bytes:
    return wire


@pytest.mark.parametrize("method", METHODS)
def test_every_method_needs_its_scope(service: Service, method: str) -> None:
    is_write = "Submit" in method or "Stream" in method
    needed, other = ("events:write", "events:read")[:: 1 if is_write else -1]
    for scope in (
        other,
        "",
        "events:admin",
        needed.upper(),
        f"{needed}x",
        needed.replace(":", " "),
    ):
        caller = service.caller(scope=scope)
        call = caller.wire_stream if "Stream" in method else caller.wire
        refusal = refused(call, *_call(method))
        assert refusal.verdict == ("PERMISSION_DENIED", "SCOPE_MISSING"), scope
        assert refusal.metadata == {"scope": needed}


def _call(name: str) -> tuple[object, ...]:
    return ([b""],) if "Stream" in name else (name, b"")


def raw(service: Service, *metadata: tuple[str, str]) -> Refusal:
    caller = service.caller()
    caller.metadata = metadata
    return refused(caller.submit, event())


GOOD = make_token(exp=int(time.time()) + 7_200)


@pytest.mark.parametrize(
    "metadata",
    [
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", GOOD)],
        [("authorization", f"Basic {GOOD}")],
        [("authorization", f"Bearer  {GOOD}x")],
        [("authorization", f"Bearer {GOOD}"), ("authorization", f"Bearer {GOOD}")],
        [("authorization", "Bearer bad"), ("authorization", f"Bearer {GOOD}")],
        [("authorization", f"Bearer {GOOD},Bearer {GOOD}")],
        [("authorization", "Bearer " + "x" * 5_000)],
        [("x-authorization", f"Bearer {GOOD}")],
        [("cookie", f"token={GOOD}")],
    ],
    ids=lambda value: str(value)[:40],
)
def test_authorization_is_one_bearer_token(
    service: Service, metadata: list[tuple[str, str]]
) -> None:
    refusal = raw(service, *metadata)

    assert refusal.code is grpc.StatusCode.UNAUTHENTICATED
    assert refusal.text == "authentication failed"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_word_bearer_may_be_written_in_any_case(service: Service, scheme: str) -> None:
    caller = service.caller()
    caller.metadata = (("authorization", f"{scheme} {caller.token}"),)

    assert caller.is_served()


def test_an_expired_token_says_so(service: Service) -> None:
    now = int(time.time())
    refusal = refused(service.caller(iat=now - 700, exp=now - 100).submit, event())

    assert refusal.verdict == ("UNAUTHENTICATED", "TOKEN_EXPIRED")
    assert refusal.text == "authentication failed"


def test_clocks_may_differ_by_a_few_seconds(service: Service) -> None:
    now = int(time.time())

    assert service.caller(iat=now + 4, nbf=now + 4).is_served()
    assert service.caller(iat=now - 60, exp=now - 4).is_served()


@pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt", "AT+JWT"])
def test_the_usual_types_are_fine(service: Service, kind: str) -> None:
    token = jwt.encode(claims("alice"), SECRET, headers={"typ": kind, "kid": "any"})

    assert with_token(service, token).is_served()


def test_a_token_that_runs_out_during_a_stream_ends_it(service: Service) -> None:
    """At the next message; what was acknowledged by its commit stays. The leeway is 10 s."""
    now = int(time.time())
    alice = service.caller("short-lived", iat=now - 60, exp=now - 7)

    def messages() -> Iterator[list[EventInput]]:
        yield [event("before")]
        while time.time() < now + 4.5:
            time.sleep(0.1)  # a stream of some life
            yield [event("before")]
        yield [event("after")]

    refusal = refused(alice.stream, messages())

    assert refusal.verdict == ("UNAUTHENTICATED", "TOKEN_EXPIRED")
    stored = service.caller("short-lived")
    assert stored.counts()["PENDING"] >= 1
    assert not stored.list(type="after").events


def seen_by_get(caller: Caller, theirs: str) -> object:
    return refused(caller.get, theirs).verdict, refused(caller.get, idempotency_key="k").verdict


#: What somebody else sees of a user's events, by call; and what it must be.
FOREIGN_READS: dict[str, tuple[Callable[[Caller, str], object], object]] = {
    "GetEvent": (seen_by_get, (("NOT_FOUND", "EVENT_NOT_FOUND"),) * 2),
    "ListEvents": (lambda caller, _id: len(caller.list().events), 0),
    "GetEventCounts": (lambda caller, _id: caller.counts(), {}),
}


def test_every_read_there_is_has_a_row_below() -> None:
    assert FOREIGN_READS.keys() == {name for name in METHODS if SCOPES[name] == "events:read"}


@pytest.mark.parametrize("method", FOREIGN_READS)
def test_no_read_shows_another_users_event(alice: Caller, bob: Caller, method: str) -> None:
    """Whatever else the stranger's token allows."""
    receipt = alice.submit(event(idempotency_key="k"))
    look, nothing = FOREIGN_READS[method]

    assert look(bob, receipt.event_id) == nothing
    assert alice.get(idempotency_key="k").event_id == receipt.event_id


def test_a_key_that_another_user_took_is_free(alice: Caller, bob: Caller) -> None:
    """No write tells what others have stored, either."""
    theirs = alice.submit(event("a", idempotency_key="k", payload={"secret": 1}))
    ours = [
        bob.submit(event("b", idempotency_key="k")),
        *bob.batch([event("b", idempotency_key="k")]),
        *bob.stream([[event("b", idempotency_key="k")]]).receipts,
    ]

    assert [one.duplicate for one in ours] == [False, True, True]
    assert theirs.event_id not in {one.event_id for one in ours}


def test_another_issuers_subject_is_somebody_else(
    service: Service, redis_url: str, tmp_path: Path
) -> None:
    """The same name, signed with the same key, under another issuer: two users."""
    here = service.caller("twin")
    receipt = here.submit(event())
    env = settings_for(service.database_url, redis_url, JWT_ISSUER="elsewhere")
    with running(tmp_path, env) as elsewhere:
        there = Caller(elsewhere.channel, make_token("twin", iss="elsewhere"))

        assert there.submit(event()).event_id
        assert refused(there.get, receipt.event_id).verdict == ("NOT_FOUND", "EVENT_NOT_FOUND")
        stranger = Caller(elsewhere.channel, here.token)
        assert refused(stranger.submit, event()).reason == "TOKEN_INVALID"
