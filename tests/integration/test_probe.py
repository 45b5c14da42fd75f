"""`ingest-service health`: where it looks, and over TLS it knows its server by its certificate."""

from pathlib import Path

import pytest

from tests.kit.certificates import Authority, write
from tests.kit.forks import run
from tests.kit.server import Service, Start, settings_for


def health(env: dict[str, str]) -> tuple[int, str]:
    """Run the command; return its exit code and what it said."""
    done = run("health", env=env)
    return done.code, done.stderr.strip()


def test_health_is_asked_where_clients_call_and_else_where_the_server_listens(
    service: Service,
) -> None:
    nowhere = "127.0.0.1:1"

    assert health({"INGEST_TARGET": service.address}) == (0, "SERVING")
    assert health({"INGEST_TARGET": service.address, "INGEST_LISTEN": nowhere}) == (0, "SERVING")
    assert health({"INGEST_LISTEN": service.address}) == (0, "SERVING")
    code, said = health({"INGEST_TARGET": nowhere, "INGEST_LISTEN": service.address})
    assert (code, said.splitlines()[-1]) == (1, "UNAVAILABLE")


@pytest.mark.parametrize("host", ["", "ingest.example.org", "*.example.org"])
@pytest.mark.parametrize("mutual", [False, True])
def test_health_is_asked_over_tls_whatever_name_the_certificate_has(
    database_url: str,
    redis_url: str,
    start_service: Start,
    tmp_path: Path,
    host: str,
    mutual: bool,
) -> None:
    authority = Authority()
    cert, key = write(tmp_path, *authority.issue(host=host))
    tls = {"TLS_CERT_FILE": str(cert), "TLS_KEY_FILE": str(key)}
    if mutual:
        authority_file = tmp_path / "ca.pem"
        authority_file.write_bytes(authority.pem)
        tls["TLS_CLIENT_CA_FILE"] = str(authority_file)
    env = settings_for(database_url, redis_url, **tls)
    server = start_service(env)

    assert health(env | {"INGEST_LISTEN": server.address}) == (0, "SERVING")


def test_a_server_with_another_certificate_is_not_taken_for_this_one(
    database_url: str, redis_url: str, start_service: Start, tmp_path: Path
) -> None:
    cert, key = write(tmp_path, *Authority().issue())
    tls = {"TLS_CERT_FILE": str(cert), "TLS_KEY_FILE": str(key)}
    env = settings_for(database_url, redis_url, **tls)
    server = start_service(env)

    other = tmp_path / "other"
    other.mkdir()
    cert, key = write(other, *Authority().issue())
    env |= {"INGEST_TLS_CERT_FILE": str(cert), "INGEST_TLS_KEY_FILE": str(key)}
    code, said = health(env | {"INGEST_LISTEN": server.address})

    assert code == 1
    assert said.splitlines()[-1] == "UNAVAILABLE"
