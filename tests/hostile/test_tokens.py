"""Who may call: nobody without a good token, and for every bad one the same few words."""

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ingest.v1 import ingest_service_pb2
from ingest.v1.event_pb2 import EventInput
from tests.hostile.bad_tokens import Sign, assemble, bad_tokens, es256, hs256, text
from tests.kit.caller import Caller, Refusal, event, refusal_of, refused
from tests.kit.server import Service, Start, settings_for
from tests.kit.tokens import SECRET, claims, make_token

HS256 = hs256(SECRET.encode())
SERVICE = ingest_service_pb2.DESCRIPTOR.services_by_name["IngestService"]
METHODS = [method.name for method in SERVICE.methods]
FORGED = make_token(key="x" * 40)


def with_token(server: Service, token: str) -> Caller:
    return Caller(server.channel, token)


def check(server: Service, algorithm: str, sign: Sign, public: bytes = b"") -> int:
    """Try every bad token; one text for all of them, so that nobody learns what was wrong."""
    good = assemble(text({"alg": algorithm, "typ": "JWT"}), text(claims()), sign)
    assert with_token(server, good).is_served(), "the control must pass"
    accepted, answers = [], set()
    count = 0
    for name, token in bad_tokens(algorithm, sign, public):
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
    return count


def test_no_bad_token_is_accepted_where_a_secret_signs(service: Service) -> None:
    assert check(service, "HS256", HS256) >= 100


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def es256_server(
    database_url: str,
    redis_url: str,
    start_service: Start,
    tmp_path: Path,
    key: ec.EllipticCurvePrivateKey,
) -> Service:
    """A server that verifies with a public key."""
    file = tmp_path / "public.pem"
    file.write_bytes(public_pem(key))
    env = settings_for(
        database_url, redis_url, JWT_ALGORITHM="ES256", JWT_PUBLIC_KEY_FILE=str(file)
    )
    del env["INGEST_JWT_SECRET"]
    return start_service(env)


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_no_bad_token_is_accepted_where_a_public_key_verifies(
    es256_server: Service, key: ec.EllipticCurvePrivateKey
) -> None:
    assert check(es256_server, "ES256", es256(key), public_pem(key)) >= 100
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
        time.sleep(3)
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
            time.sleep(0.1)
            yield [event("before")]
        yield [event("after")]

    refusal = refused(alice.stream, messages())

    assert refusal.verdict == ("UNAUTHENTICATED", "TOKEN_EXPIRED")
    stored = service.caller("short-lived")
    assert stored.counts()["PENDING"] >= 1
    assert not stored.list(type="after").events
