"""Whatever a key server answers: the last good keys stay, and nobody else is asked for any."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from ingest_service.jwks import JwkSet, JwksUrl
from tests.kit.certificates import Authority, write
from tests.kit.key_server import Key, KeyServer, key_set
from tests.kit.waiting import eventually


def answer(status: str, *headers: str, body: bytes = b"") -> bytes:
    lines = "\r\n".join([f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}"])
    return lines.encode() + b"\r\n\r\n" + body


KEY = Key("key")
ODD = {
    "an error": answer("500 Internal Server Error", body=key_set(KEY)),
    "not found": answer("404 Not Found"),
    "a redirect to a file": answer("302 Found", "Location: file:///etc/passwd"),
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
    "a good set, longer than 1 MiB": answer("200 OK", body=key_set(Key("odd")) + b" " * (1 << 20)),
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
    assert keys.keys_for("key")

    key_server.raw = ODD[name]
    await keys.refresh()
    assert keys.keys_for("key")
    assert not keys.keys_for("odd")

    key_server.raw = b""
    key_server.publish(new)
    await keys.refresh()
    assert keys.keys_for("new")
    assert not keys.keys_for("key")
    assert key_server.asked == 3


@asynccontextmanager
async def kept_fresh(key_server: KeyServer) -> AsyncIterator[JwkSet]:
    """Keep a set of keys as a running server does, once it was read."""
    keys = JwkSet("ES256", JwksUrl(key_server.url))
    reading = asyncio.create_task(keys.keep_fresh())
    try:
        await asyncio.to_thread(eventually, lambda: keys.version == 1)
        yield keys
    finally:
        reading.cancel()
        _, going_on = await asyncio.wait([reading], timeout=5)
    assert not going_on


async def test_keys_that_nobody_knows_do_not_have_a_key_server_asked_more_often(
    key_server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But sooner than it would be: a new key is used within seconds, however many are forged."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert JwksUrl.least_seconds == 5
    monkeypatch.setattr(JwksUrl, "least_seconds", 0.5)
    key_server.publish(KEY)
    began = time.monotonic()

    async with kept_fresh(key_server) as keys, asyncio.timeout(20):
        while key_server.asked < 3:
            assert not keys.keys_for("stranger")
            await asyncio.sleep(0.01)  # as often as forged tokens come
        assert time.monotonic() - began >= 2 * 0.5


async def test_a_key_that_is_withdrawn_is_forgotten_though_no_other_is_asked_for(
    key_server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert JwksUrl.refresh_seconds == 60
    monkeypatch.setattr(JwksUrl, "refresh_seconds", JwksUrl.refresh_seconds / 120)
    monkeypatch.setattr(JwksUrl, "least_seconds", JwksUrl.least_seconds / 120)
    key_server.publish(KEY, Key("other"))

    async with kept_fresh(key_server) as keys:
        assert keys.keys_for("key")
        key_server.publish(Key("other"))
        await asyncio.to_thread(eventually, lambda: keys.version == 2)
        assert not keys.keys_for("key")


async def test_keys_are_read_no_more_once_that_is_cancelled_though_one_was_just_missed(
    key_server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(JwksUrl, "least_seconds", 0.0)
    key_server.publish(KEY)

    async with kept_fresh(key_server) as keys:
        assert not keys.keys_for("stranger")


@pytest.mark.parametrize("status", ["301", "302", "303", "307", "308"])
async def test_a_redirect_leads_to_no_other_key_server(
    key_server: KeyServer, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """The other one would answer with good keys, but is never asked."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    other = KeyServer()
    try:
        other.publish(Key("other"))
        key_server.raw = answer(f"{status} Elsewhere", f"Location: {other.url}")
        keys = JwkSet("ES256", JwksUrl(key_server.url))
        await keys.refresh()
        assert (key_server.asked, other.asked) == (1, 0)
        assert not keys.keys_for("other")

        directly = JwkSet("ES256", JwksUrl(other.url))
        await directly.refresh()
        assert directly.keys_for("other"), "the control must be read"
    finally:
        other.close()


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
        assert not keys.keys_for("key")

        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ours"))
        await keys.refresh()
        assert keys.keys_for("key")
