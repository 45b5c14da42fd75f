"""What is wrong or contradictory stops the start: exit code 2, one line, and nobody is let in."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.kit.certificates import Authority, write
from tests.kit.forks import run
from tests.kit.processes import Process, Processes
from tests.kit.server import BIN, Start, record, records, settings_for
from tests.kit.tokens import SECRET
from tests.kit.waiting import eventually

ES256 = {"JWT_ALGORITHM": "ES256"}
RS256 = {"JWT_ALGORITHM": "RS256"}
#: Settings, with the names of files of the fixture in braces, and what the line must name.
REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "no key": ({}, "INGEST_JWT_SECRET"),
    "an empty secret": ({"JWT_SECRET": ""}, "INGEST_JWT_SECRET"),
    "a secret of blanks": ({"JWT_SECRET": " " * 40}, "INGEST_JWT_SECRET"),
    "a secret of 31 bytes": ({"JWT_SECRET": "x" * 31}, "INGEST_JWT_SECRET"),
    "a public key as secret": ({"JWT_SECRET": "{jwk}"}, "INGEST_JWT_SECRET"),
    "no algorithm": ({"JWT_ALGORITHM": "none"}, "INGEST_JWT_ALGORITHM"),
    "two algorithms": ({"JWT_ALGORITHM": "HS256,RS256"}, "INGEST_JWT_ALGORITHM"),
    "a secret and a public key": (
        {"JWT_SECRET": SECRET, "JWT_PUBLIC_KEY_FILE": "{ec}"},
        "INGEST_JWT_SECRET",
    ),
    "a secret for ES256": (ES256 | {"JWT_SECRET": SECRET}, "INGEST_JWT_PUBLIC_KEY_FILE"),
    "both, for ES256": (
        ES256 | {"JWT_SECRET": SECRET, "JWT_PUBLIC_KEY_FILE": "{ec}"},
        "exactly one",
    ),
    "a key and a set": (
        ES256 | {"JWT_PUBLIC_KEY_FILE": "{ec}", "JWT_JWKS_FILE": "{set}"},
        "exactly one",
    ),
    "a key file that is not there": (
        ES256 | {"JWT_PUBLIC_KEY_FILE": "{nowhere}"},
        "INGEST_JWT_PUBLIC_KEY_FILE",
    ),
    "a folder": (ES256 | {"JWT_PUBLIC_KEY_FILE": "{folder}"}, "INGEST_JWT_PUBLIC_KEY_FILE"),
    "an empty key file": (
        ES256 | {"JWT_PUBLIC_KEY_FILE": "{empty}"},
        "INGEST_JWT_PUBLIC_KEY_FILE",
    ),
    "a private key": (ES256 | {"JWT_PUBLIC_KEY_FILE": "{private}"}, "INGEST_JWT_PUBLIC_KEY_FILE"),
    "a key of another family": (
        RS256 | {"JWT_PUBLIC_KEY_FILE": "{ec}"},
        "INGEST_JWT_PUBLIC_KEY_FILE",
    ),
    "a weak key": (RS256 | {"JWT_PUBLIC_KEY_FILE": "{weak}"}, "INGEST_JWT_PUBLIC_KEY_FILE"),
    "a set that is not there": (ES256 | {"JWT_JWKS_FILE": "{nowhere}"}, "INGEST_JWT_JWKS_FILE"),
    "an empty set": (ES256 | {"JWT_JWKS_FILE": "{empty}"}, "INGEST_JWT_JWKS_FILE"),
    "a set of another family": (RS256 | {"JWT_JWKS_FILE": "{set}"}, "INGEST_JWT_JWKS_FILE"),
    "a set in the clear": (
        ES256 | {"JWT_JWKS_URL": "http://example.org/keys"},
        "INGEST_JWT_JWKS_URL",
    ),
    "a set at a port that is none": (
        ES256 | {"JWT_JWKS_URL": "https://127.0.0.1:99999/keys"},
        "INGEST_JWT_JWKS_URL",
    ),
    "a set by a name that is none": (
        ES256 | {"JWT_JWKS_URL": "https://canary:canary@h\u2100/keys"},
        "INGEST_JWT_JWKS_URL",
    ),
    "a set by another scheme": (ES256 | {"JWT_JWKS_URL": "file://{set}"}, "INGEST_JWT_JWKS_URL"),
    "no issuer": ({"JWT_SECRET": SECRET, "JWT_ISSUER": " "}, "INGEST_JWT_ISSUER"),
    "no audience": ({"JWT_SECRET": SECRET, "JWT_AUDIENCE": " "}, "INGEST_JWT_AUDIENCE"),
    "revocations that are not there": (
        {"JWT_SECRET": SECRET, "JWT_REVOCATION_FILE": "{nowhere}"},
        "INGEST_JWT_REVOCATION_FILE",
    ),
    "revocations that revoke nothing": (
        {"JWT_SECRET": SECRET, "JWT_REVOCATION_FILE": "{misspelt}"},
        "INGEST_JWT_REVOCATION_FILE",
    ),
    "a certificate without its key": (
        {"JWT_SECRET": SECRET, "TLS_CERT_FILE": "{cert}"},
        "INGEST_TLS_KEY_FILE",
    ),
    "another certificate's key": (
        {"JWT_SECRET": SECRET, "TLS_CERT_FILE": "{cert}", "TLS_KEY_FILE": "{private}"},
        "INGEST_TLS_KEY_FILE",
    ),
    "client authorities that are none": (
        {"JWT_SECRET": SECRET, "TLS_CERT_FILE": "{cert}", "TLS_KEY_FILE": "{key}"}
        | {"TLS_CLIENT_CA_FILE": "{misspelt}"},
        "INGEST_TLS_CLIENT_CA_FILE",
    ),
    "no client authority": (
        {"JWT_SECRET": SECRET, "TLS_CERT_FILE": "{cert}", "TLS_KEY_FILE": "{key}"}
        | {"TLS_CLIENT_CA_FILE": "{empty}"},
        "INGEST_TLS_CLIENT_CA_FILE",
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Keys and sets, good and bad, by the name that stands for them."""
    folder = tmp_path_factory.mktemp("keys")
    private = ec.generate_private_key(ec.SECP256R1())
    weak = rsa.generate_private_key(65_537, 1_024).public_key()  # noqa: S505  # that is the point
    public = private.public_key().public_numbers()
    jwk = {"kty": "EC", "crv": "P-256", "kid": "a", "x": _number(public.x), "y": _number(public.y)}
    contents = {
        "empty": b"",
        "misspelt": b'{"jtis": ["stolen"]}',
        "ec": _pem(private.public_key()),
        "weak": _pem(weak),
        "private": private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "set": json.dumps({"keys": [jwk]}).encode(),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    cert, key = write(folder, *Authority().issue())
    paths = {name: str(folder / name) for name in (*contents, "nowhere")}
    return paths | {
        "folder": str(folder),
        "jwk": json.dumps(jwk),
        "cert": str(cert),
        "key": str(key),
    }


def _pem(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _number(value: int) -> str:
    return base64.urlsafe_b64encode(value.to_bytes(32, "big")).rstrip(b"=").decode()


@pytest.mark.parametrize("name", REFUSED)
def test_a_server_that_could_not_tell_who_is_calling_does_not_start(
    files: dict[str, str], name: str
) -> None:
    env = settings_for(f"sqlite:///{files['folder']}/x.db", "redis://127.0.0.1:1/0")
    del env["INGEST_JWT_SECRET"]
    for setting, value in REFUSED[name][0].items():
        for stands_for, path in files.items():
            value = value.replace(f"{{{stands_for}}}", path)  # noqa: PLW2901
        env[f"INGEST_{setting}"] = value
    code, stdout, stderr = run("serve", env=env)

    assert (code, stdout) == (2, ""), stderr
    (line,) = (line for line in stderr.splitlines() if not line.startswith("{"))
    assert line.startswith("Error: ")
    assert REFUSED[name][1] in line
    assert "server_started" not in stderr


IN_THE_CLEAR = [
    (command, listen)
    for command in ("serve", "dev")
    for listen in ("0.0.0.0:0", "[::]:0", "192.0.2.1:0", "127.example.org:0", "localhost.example:0")
]


def test_nothing_listens_in_the_clear_off_loopback_unless_told_to(tmp_path: Path) -> None:
    """Nor where a name only looks like this machine's."""
    good = settings_for(f"sqlite:///{tmp_path}/x.db", "redis://127.0.0.1:1/0")
    good["INGEST_DATA_DIR"] = str(tmp_path / "data")

    for command, listen in IN_THE_CLEAR:
        ended = run(command, env=good | {"INGEST_LISTEN": listen})
        assert (ended.code, ended.stdout) == (2, ""), (command, listen, ended)
        (line,) = ended.stderr.splitlines()
        assert line.startswith("Error: ")
        assert listen in line
        assert "INGEST_PLAINTEXT" in line
        assert ("INGEST_TLS_CERT_FILE" in line) == (command == "serve")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("command", ["serve", "dev"])
def test_a_listener_in_the_clear_is_warned_of_at_each_start(
    env: dict[str, str], start_service: Start, tmp_path: Path, command: str
) -> None:
    # A name that leads to loopback and is not taken for it: tests open no port to others.
    env |= {"INGEST_LISTEN": "here.localhost:0", "INGEST_PLAINTEXT": "true"}
    if command == "dev":  # which uses neither, and says so
        del env["INGEST_DATABASE_URL"], env["INGEST_BROKER_URL"]
    env["INGEST_DATA_DIR"] = str(tmp_path / "data")

    for _ in range(2):
        server = start_service(env, command)
        assert server.caller().is_served() or command == "dev"
        (told,) = (line for line in records(server.process) if line["level"] == "warning")
        assert (told["event"], told["listen"]) == ("plaintext_off_loopback", "here.localhost:0")
        assert server.stop() == 0


def test_on_loopback_and_with_tls_there_is_nothing_to_warn_of(
    env: dict[str, str], start_service: Start, files: dict[str, str]
) -> None:
    tls = {"INGEST_TLS_CERT_FILE": files["cert"], "INGEST_TLS_KEY_FILE": files["key"]}
    for listen in ({}, tls | {"INGEST_LISTEN": "here.localhost:0"}):
        server = start_service(env | listen)
        assert not any(line["level"] == "warning" for line in records(server.process))


def test_a_misspelt_setting_is_warned_of_at_the_start(
    env: dict[str, str], start_service: Start
) -> None:
    server = start_service(env | {"INGEST_READ_THREAD": "9"})

    told = eventually(lambda: record(server.process, "settings_unknown"))
    assert told is not None
    assert (told["level"], told["names"]) == ("warning", ["INGEST_READ_THREAD"])


@pytest.fixture
def worker(env: dict[str, str], processes: Processes) -> Process:
    return processes.start(
        BIN / "ingest-service",
        "worker",
        env=env,
        ready=lambda started: '"event": "worker_started"' in started.stderr(),
    )


@pytest.fixture
def env(database_url: str, broker_url: str) -> dict[str, str]:
    return settings_for(database_url, broker_url)


def test_a_server_listens_on_its_port_alone_and_a_worker_on_none(
    env: dict[str, str], start_service: Start, worker: Process
) -> None:
    """No metrics, no debugger, no channelz beside what is asked for."""
    server = start_service(env)

    assert set(listening(server.process.pid)) == {server.port}
    assert set(listening(worker.pid)) == set()


def listening(pid: int) -> Iterator[int]:
    """Yield the TCP ports that a process and its children listen on."""
    for process in family(pid):
        sockets = set()
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            try:
                sockets.add(descriptor.readlink().name)
            except OSError:
                continue  # closed meanwhile
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, *_, inode = line.split()[:10]
                if state == "0A" and f"socket:[{inode}]" in sockets:
                    yield int(local.rpartition(":")[2], 16)


def family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in family(int(child)))]


def test_the_limits_in_force_are_told_at_the_start(
    env: dict[str, str], start_service: Start
) -> None:
    """One line with every limit that a client can meet, and no secret."""
    chosen = {"USER_STREAMS": "7", "STREAM_IDLE_SECONDS": "3", "USER_PENDING_EVENTS": "9"}
    chosen["MAX_CONNECTIONS"] = "11"
    server = start_service(env | {f"INGEST_{name}": value for name, value in chosen.items()})
    told = record(server.process, "server_limits")

    assert told is not None
    expected = {
        "message_bytes": 4 << 20,
        "metadata_bytes": 8_192,
        "token_characters": 4_096,
        "connection_streams": 256,
        "connection_idle_seconds": 300,
        "handshake_seconds": 10,
        "batch_events": 1_000,
        "page_events": 1_000,
        "event_bytes": (4 << 20) - (16 << 10),
        "text_bytes": 255,
        "attributes": 64,
        "answer_bytes": 32 << 20,
        "json_levels": 64,
        "stream_idle_seconds": 3,
        "stream_max_seconds": 3_600,
        "unary_max_seconds": 30,
        "user_streams": 7,
        "user_events_per_second": 0,
        "user_bytes_per_second": 0,
        "user_reads_per_second": 0,
        "user_pending_events": 9,
        "connections": 11,
        "waiting_rows": 20_000,
        "waiting_bytes": 6 << 20,
        "group_rows": 2_000,
    }
    assert {name: told.get(name) for name in expected} == expected
    assert told["open_files"] > 0
    assert SECRET not in json.dumps(told)
