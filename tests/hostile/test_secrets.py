"""No secret comes out: not in a log, an answer, a report, a command line, nor when things break."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
import redis
from ruamel.yaml import YAML

from eventstore.settings import Settings, SettingsError
from ingest_service.cli import main
from tests.hostile.canaries import (
    ATTRIBUTE,
    BROKER,
    DATABASE,
    EMAIL,
    PAYLOAD,
    SECRET,
    TOKEN,
    leaks,
    with_password,
)
from tests.kit.caller import Caller, event
from tests.kit.databases import close_database
from tests.kit.forks import run
from tests.kit.processes import Process, Processes
from tests.kit.server import BIN, Service, records, running, settings_for
from tests.kit.services import Redis, start_redis
from tests.kit.tokens import make_token
from tests.kit.waiting import eventually

ROOT = Path(__file__).parents[2]
FAST = {"SWEEP_SECONDS": "0.2", "DISPATCH_GRACE_SECONDS": "0.5"}


@pytest.fixture(scope="module")
def guarded_redis() -> Iterator[Redis]:
    """A Redis that asks for a password."""
    server = start_redis()
    with redis.Redis(port=server.port) as client:
        client.config_set("requirepass", BROKER)
    yield server
    server.remove()


@pytest.fixture
def env(database_url: str, guarded_redis: Redis) -> dict[str, str]:
    """Settings with a secret wherever there can be one, and everything logged."""
    broker = with_password(guarded_redis.url, BROKER)
    return settings_for(
        with_password(database_url, DATABASE), broker, JWT_SECRET=SECRET, LOG_LEVEL="DEBUG"
    )


@pytest.fixture
def server(env: dict[str, str], tmp_path: Path) -> Iterator[Service]:
    """A server that is not expected to stay well."""
    with running(tmp_path, env) as started:
        yield started


def heard(caller: Caller) -> str:
    """Everything that the server says to a few good and many bad calls."""
    answers: list[object] = []
    calls: list[Callable[[], object]] = [
        lambda: caller.submit(event(PAYLOAD, payload={PAYLOAD: PAYLOAD})),
        lambda: caller.submit(event("x" * 300, source=PAYLOAD)),
        lambda: caller.submit(event(f"a\n{PAYLOAD}", attributes={"a\n": ATTRIBUTE})),
        lambda: caller.submit(event(payload_json=f'{{"a": "{PAYLOAD}')),
        lambda: caller.submit(event(payload_json=f'["{PAYLOAD}", 1e999]')),
        lambda: caller.submit(event(idempotency_key="same", payload=PAYLOAD)),
        lambda: caller.submit(event(idempotency_key="same", payload=[PAYLOAD])),
        lambda: caller.submit(event(attributes={"ip": ATTRIBUTE}, payload=[PAYLOAD])),
        lambda: caller.get(PAYLOAD),
        lambda: caller.get(idempotency_key=PAYLOAD),
        lambda: caller.list(page_token=PAYLOAD),
        lambda: caller.wire("SubmitEvent", b"\xff" + PAYLOAD.encode()),
        lambda: caller.wire_stream([b"\xff" + PAYLOAD.encode()]),
        lambda: caller.stream([[event(source=f"\0{PAYLOAD}"), event(payload=[PAYLOAD])]]),
        lambda: caller.batch([event(payload=PAYLOAD), event("")]),
    ]
    for call in calls:
        try:
            answers.append(call())
        except grpc.RpcError as error:
            refusal = cast("grpc.Call", error)
            answers.append((refusal.code(), refusal.details(), refusal.trailing_metadata()))
    return repr(answers)


def strangers(server: Service) -> Iterator[Caller]:
    """Callers whose tokens are refused, and hold a secret of their owner."""
    now = int(time.time())
    yield Caller(server.channel, TOKEN)
    yield Caller(server.channel, f"{TOKEN}.{TOKEN}.{TOKEN}")
    bad: list[dict[str, Any]] = [
        {"key": f"{TOKEN}{TOKEN}"},
        {"exp": now - 60},
        {"aud": TOKEN},
        {"iss": TOKEN},
        {"sub": f"{TOKEN}\n"},
        {"scope": [TOKEN]},
        {"email": f"{EMAIL} {EMAIL}"},
        {"jti": {TOKEN: 1}},
        {"headers": {"kid": f"{TOKEN}\0"}},
        {"headers": {"jku": TOKEN}},
        {"headers": {"crit": [TOKEN]}},
    ]
    for claims in bad:
        yield Caller(server.channel, make_token(**{"key": SECRET, "jti": TOKEN} | claims))
    yield Caller(server.channel, make_token(key=SECRET, scope=TOKEN))


def command_lines(process: Process) -> str:
    """The arguments of a process and all of its children, as `ps` shows them to everybody."""
    waiting, found = [process.pid], ""
    while waiting:
        pid = waiting.pop()
        with suppress(OSError):
            found += Path(f"/proc/{pid}/cmdline").read_text() + "\n"
            waiting += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return found


def test_nothing_secret_comes_out_while_all_is_well_and_while_it_breaks(
    env: dict[str, str],
    postgres_url: str,
    database_url: str,
    guarded_redis: Redis,
    server: Service,
    processes: Processes,
) -> None:
    """Good and bad calls; then without Redis; then without a database; then the end."""
    worker = processes.start(
        BIN / "ingest-service",
        "worker",
        env=env | {f"INGEST_{name}": value for name, value in FAST.items()},
        ready=lambda started: '"event": "worker_started"' in started.stderr(),
    )
    alice = Caller(server.channel, make_token("alice", key=SECRET, jti=TOKEN, email=EMAIL))
    assert leaks(command_lines(server.process) + command_lines(worker)) == []

    said = heard(alice)
    for stranger in strangers(server):
        said += heard(stranger)
    eventually(lambda: "PENDING" not in alice.counts(), timeout=15)
    stored = {alice.get(one.event_id).processing_error for one in alice.list().events}
    assert leaks(repr(stored)) == []

    guarded_redis.kill()
    said += heard(alice)
    eventually(lambda: "broker_unavailable" in server.process.stderr())

    close_database(postgres_url, database_url)
    eventually(lambda: '"ready": false' in server.process.stderr())
    said += heard(alice)
    assert "UNAVAILABLE" in said
    eventually(lambda: "sweep_failed" in worker.stderr() or "unavailable" in worker.stderr())

    assert server.stop() == 0
    worker.terminate()
    worker.wait()
    assert len(records(server.process)) > 30
    logged = server.process.output() + worker.output()
    assert "call_unauthenticated" in logged
    assert leaks(said) == []
    assert leaks(logged) == []
    _, claims, signature = alice.token.split(".")
    assert claims not in logged
    assert signature not in logged


URLS = [
    "postgresql://u:{}@127.0.0.1:1/x",
    "postgresql://u:{}@127.0.0.1:port/x",
    "postgresql://u:{}/{}@127.0.0.1:1/x",
    "postgresql://u:{}#@127.0.0.1:1/x",
    "postgresql://u:{}@[::1/x",
    "postgresql://u:@127.0.0.1:{}/x",
    "postgresql://{}",
    "postgresql://127.0.0.1:1/x?password={}",
    "postgresql://127.0.0.1:1/x?sslpassword={}&nonsense={}",
    "postgresql://127.0.0.1:1/x?sslmode={}",
    "postgresql+asyncpg://u:{}@127.0.0.1:1/x",
    "mysql://u:{}@127.0.0.1:1/x",
    "{}",
]
BROKERS = [
    "redis://:{}@127.0.0.1:1/0",
    "redis://:{}@127.0.0.1:port/0",
    "redis://:{}/{}@127.0.0.1:1/0",
    "redis://:{}@[::1/0",
    "redis://127.0.0.1:1/0?password={}",
    "redis://127.0.0.1:1/0?socket_timeout={}",
    "redis://127.0.0.1:1/0?{}=1",
    "rediss://:{}@127.0.0.1:1/0?ssl_cert_reqs={}",
    "amqp://u:{}@127.0.0.1:1/x",
    "amqp://u:{}@127.0.0.1:port/x",
    "amqp://u:{}/{}@127.0.0.1:1/x",
    "amqp://127.0.0.1:1/x?heartbeat={}",
    "kafka://:{}@127.0.0.1:1/0",
    "{}",
]
#: Nobody can make sense of these; the others are merely not there, and may be some day.
UNREADABLE = {URLS[index] for index in (1, 4, 5, 10, 12)}
UNREADABLE |= {BROKERS[index] for index in (1, 2, 9, 12)}
OTHERS: list[dict[str, str]] = [
    {"JWT_SECRET": TOKEN[:31]},
    {"JWT_SECRET": SECRET, "JWT_ALGORITHM": "ES256"},
    {"JWT_SECRET": SECRET, "JWT_ALGORITHM": "ES256", "JWT_PUBLIC_KEY_FILE": "/dev/null"},
    {"JWT_SECRET": f'{{"kty": "oct", "k": "{SECRET}"}}'},
    {"JWT_ALGORITHM": SECRET},
    # Pasted where the name of a file is asked for.
    {"JWT_ALGORITHM": "ES256", "JWT_SECRET": "", "JWT_PUBLIC_KEY_FILE": f"-----BEGIN\n{SECRET}"},
    {"JWT_ALGORITHM": "ES256", "JWT_SECRET": "", "JWT_JWKS_FILE": f'{{"keys": "{SECRET}"}}'},
    {"JWT_ALGORITHM": "ES256", "JWT_SECRET": "", "JWT_JWKS_URL": f"ftp://u:{SECRET}@127.0.0.1"},
    {"JWT_REVOCATION_FILE": SECRET},
    {"TLS_CERT_FILE": SECRET, "TLS_KEY_FILE": SECRET},
    {"TLS_CERT_FILE": "/dev/null", "TLS_KEY_FILE": f"-----BEGIN PRIVATE KEY-----\n{SECRET * 8}"},
]


def broken(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield commands with settings that cannot work."""
    good = settings_for(f"sqlite:///{tmp_path / 'x.db'}", "redis://127.0.0.1:1/0")
    for url in URLS:
        env = good | {"INGEST_DATABASE_URL": url.replace("{}", DATABASE)}
        yield from (("doctor", env), ("migrate", env))
        if url in UNREADABLE:
            yield "serve", env
    for url in BROKERS:
        env = good | {"INGEST_BROKER_URL": url.replace("{}", BROKER)}
        yield "doctor", env
        if url in UNREADABLE:
            yield "serve", env
    yield "worker", good | {"INGEST_DATABASE_URL": URLS[5].replace("{}", DATABASE)}
    yield "worker", good | {"INGEST_BROKER_URL": BROKERS[2].replace("{}", BROKER)}
    for values in OTHERS:
        env = good | {f"INGEST_{name}": value for name, value in values.items()}
        yield from (("serve", env), ("doctor", env))


def test_wrong_settings_end_in_a_line_without_a_secret(tmp_path: Path) -> None:
    """Every command says what is wrong, and none quotes what it was given or shows its insides."""
    for command, env in broken(tmp_path):
        ended = run(command, env=env)
        given = {name: value for name, value in env.items() if "canary" in value}
        said = ended.stdout + ended.stderr
        assert ended.code in {1, 2}, (command, given, said)
        assert "canary" not in said, (command, given, said)
        assert leaks(said) == [], (command, given, said)
        assert "Traceback" not in said, (command, given, said)


def test_settings_do_not_show_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "DATABASE_URL": f"postgresql://u:{DATABASE}@127.0.0.1/x",
        "BROKER_URL": f"redis://:{BROKER}@127.0.0.1/0",
        "JWT_SECRET": SECRET,
    }.items():
        monkeypatch.setenv(f"INGEST_{name}", value)
    settings = Settings.load()
    shown = [repr(settings), str(settings), f"{settings.model_dump()}", settings.model_dump_json()]

    assert leaks("".join(shown)) == []
    assert "canary" not in "".join(shown)
    monkeypatch.setenv("INGEST_JWT_SECRET", TOKEN[:20])
    with pytest.raises(SettingsError) as caught:
        Settings.load()
    assert "canary" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_no_command_takes_a_secret_of_the_service_as_an_argument() -> None:
    """Arguments can be seen by everybody on the machine."""
    options = {
        option
        for command in (main, *main.commands.values())
        for parameter in command.params
        for option in parameter.opts
    }

    assert "--subject" in options
    for word in ("secret", "password", "key", "database", "broker", "url"):
        assert not any(word in option for option in options)


def test_what_is_deployed_has_no_password_of_ours_and_few_rights() -> None:
    compose = YAML(typ="safe").load(ROOT / "docker-compose.yml")
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        for setting, value in (service.get("environment") or {}).items():
            if "PASSWORD" in setting or "SECRET" in setting:
                assert re.match(r"\$\{\w+:\?", value), (name, setting)
            if "://" in value and "@" in value:
                assert ":${POSTGRES_PASSWORD:?" in value, (name, setting)
        if name in {"postgres", "redis"}:
            assert "ports" not in service, name
        else:
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name  # it is spoken to without TLS
    last = (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2].splitlines()
    (user,) = (line.split()[1] for line in last if line.startswith("USER "))
    assert user.split(":")[0] not in {"0", "root"}
    image = json.dumps(last)
    assert not any(word in image for word in ("SECRET=", "PASSWORD=", "_URL="))
