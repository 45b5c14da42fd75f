"""`ingest-service doctor` says of TLS files what a server and its clients would make of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from tests.integration.test_doctor import examine
from tests.kit.certificates import Authority, write
from tests.kit.forks import run
from tests.kit.server import settings_for

Spoil = Callable[[Path], object]


@pytest.fixture
def env(database_url: str, broker_url: str, tmp_path: Path) -> dict[str, str]:
    """Settings of a server with mTLS, all of it in order for months."""
    authority = Authority(days=300)
    cert, key = write(tmp_path, *authority.issue(days=100))
    key.chmod(0o600)
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.pem)
    files = {"TLS_CERT_FILE": cert, "TLS_KEY_FILE": key, "TLS_CLIENT_CA_FILE": ca}
    more = {name: str(file) for name, file in files.items()}
    return settings_for(database_url, broker_url, **more)


def test_tls_that_works_is_in_order(env: dict[str, str]) -> None:
    code, found = examine(env, "--allow-unsafe-durability")

    assert code == 0
    for check in ("listener", "certificate", "TLS key", "client CA"):
        assert found[check][0] == "ok"


def junk(name: str) -> Spoil:
    return lambda folder: (folder / name).write_bytes(b"junk")


def without(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def of_a_key(make: Callable[[], CertificateIssuerPrivateKeyTypes]) -> Spoil:
    """OpenSSL takes most of these, and gRPC's server or clients do not."""
    return lambda folder: write(folder, *Authority().issue(key=make()))


def encrypted(folder: Path) -> None:
    file = folder / "key.pem"
    key = load_pem_private_key(file.read_bytes(), None)
    how = BestAvailableEncryption(b"a password")
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))


@pytest.mark.parametrize(
    "spoil, named",
    [
        (junk("cert.pem"), "INGEST_TLS_CERT_FILE"),
        (junk("key.pem"), "INGEST_TLS_KEY_FILE"),
        (junk("ca.pem"), "INGEST_TLS_CLIENT_CA_FILE"),
        (without("cert.pem"), "INGEST_TLS_CERT_FILE"),
        (without("key.pem"), "INGEST_TLS_KEY_FILE"),
        (without("ca.pem"), "INGEST_TLS_CLIENT_CA_FILE"),
        (lambda folder: write(folder, Authority().issue()[0], b""), "INGEST_TLS_KEY_FILE"),
        (encrypted, "not encrypted"),
        (of_a_key(lambda: rsa.generate_private_key(65_537, 1_024)), "of RSA with 2048 bits"),  # noqa: S505  # that is the test
        (of_a_key(lambda: ec.generate_private_key(ec.SECP521R1())), "P-256 or P-384"),
        (of_a_key(lambda: ec.generate_private_key(ec.SECP256K1())), "P-256 or P-384"),
        (of_a_key(Ed25519PrivateKey.generate), "P-256 or P-384"),
    ],
    ids=[
        "cert junk",
        "key junk",
        "CA junk",
        "no cert",
        "no key",
        "no CA",
        "empty key",
        "encrypted",
        "RSA-1024",
        "P-521",
        "secp256k1",
        "Ed25519",
    ],
)
def test_what_stops_a_server_fails_with_the_same_words(
    env: dict[str, str], tmp_path: Path, spoil: Spoil, named: str
) -> None:
    spoil(tmp_path)
    code, found = examine(env, "--allow-unsafe-durability")
    refused = run("serve", env=env)

    assert (code, found["listener"][0]) == (1, "fail")
    assert named in found["listener"][1]
    assert refused.code == 2
    assert found["listener"][1] in refused.stderr


@pytest.mark.parametrize("days, code, verdict", [(-1, 1, "fail"), (13, 0, "warn"), (16, 0, "ok")])
def test_a_certificate_that_ends_soon_is_a_warning_and_one_that_has_ended_fails(
    env: dict[str, str], tmp_path: Path, days: int, code: int, verdict: str
) -> None:
    write(tmp_path, *Authority().issue(days=days))
    (tmp_path / "ca.pem").write_bytes(Authority(days=days).pem)
    ended, found = examine(env, "--allow-unsafe-durability")

    assert ended == code
    for check in ("certificate", "client CA"):
        assert found[check][0] == verdict
        assert ("renew it" in found[check][1]) == (verdict != "ok")


@pytest.mark.parametrize(
    "since, days, code, verdict",
    [(-3, -1, 1, "fail"), (1, 100, 1, "fail"), (-3, 13, 0, "warn"), (-3, 100, 0, "ok")],
    ids=["ended", "not yet valid", "ends soon", "in order"],
)
def test_every_certificate_of_a_chain_is_judged_and_named(
    env: dict[str, str], tmp_path: Path, since: int, days: int, code: int, verdict: str
) -> None:
    """A server shows the chain whole, and clients refuse it for the one in the middle."""
    root, middle = Authority("Root"), Authority("Middle")
    leaf, key = middle.issue("leaf", days=300)
    chain = leaf + root.certify(middle, since=since, days=days)
    write(tmp_path, chain, key)
    (tmp_path / "ca.pem").write_bytes(Authority("Another", days=300).pem + chain)
    ended, found = examine(env, "--allow-unsafe-durability")

    assert ended == code
    for check in ("certificate", "client CA"):
        assert found[check][0] == verdict
        assert found[check][1].startswith("CN=Middle ")
        assert "CN=leaf" not in found[check][1]
