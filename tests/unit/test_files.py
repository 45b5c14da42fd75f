"""Files that an operator replaces: a reading that never ends holds up nobody, and costs little."""

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import structlog

from ingest_service import files
from ingest_service.files import MOST_BYTES, Aside, read_file
from ingest_service.jwks import JwkSet, JwksFile
from ingest_service.revocation import Revocations
from tests.kit.key_server import Key, key_set
from tests.kit.waiting import eventually


def test_the_largest_file_is_read_and_one_more_byte_is_not(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * MOST_BYTES)
    assert len(read_file(file).data) == MOST_BYTES

    file.write_bytes(b"x" * (MOST_BYTES + 1))
    with pytest.raises(OSError, match="larger than 1048576 bytes"):
        read_file(file)


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(OSError, match="no regular file"):
        read_file(fifo)


def test_readings_that_never_end_are_few_and_begin_again_when_they_ended() -> None:
    aside, end = Aside("stuck"), threading.Event()
    for _ in range(files._MOST_STUCK):
        with pytest.raises(TimeoutError, match="takes too long"):
            aside.wait_for(end.wait, 0.01)
    before = threading.active_count()
    with pytest.raises(TimeoutError, match="takes too long"):
        aside.wait_for(lambda: True, 5)
    assert threading.active_count() == before

    end.set()

    def is_free() -> bool:
        try:
            return aside.wait_for(lambda: True, 5)
        except TimeoutError:
            return False

    eventually(is_free)


async def test_a_reading_that_ends_as_its_wait_is_cancelled_does_not_undo_the_cancel() -> None:
    aside, end = Aside("ending"), threading.Event()
    waiting = asyncio.create_task(aside.result(end.wait))
    await asyncio.sleep(0)  # it begins

    end.set()
    # The loop stands still meanwhile, so it learns of both at once.
    eventually(lambda: "ending" not in {thread.name for thread in threading.enumerate()})
    waiting.cancel()

    await asyncio.wait([waiting])
    assert waiting.cancelled()


def test_a_file_system_that_hangs_keeps_what_was_revoked_and_its_return_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a network mount does whose server is gone; the reading that hangs may hang on."""
    file = tmp_path / "revoked.json"
    file.write_text('{"jti": ["stolen"]}')
    revocations = Revocations(file)
    file.write_text('{"jti": ["stolen", "other"]}')
    end = threading.Event()
    monkeypatch.setattr("ingest_service.files.READ_SECONDS", 0.05)

    def hang(_path: Path) -> files.FileContent:
        end.wait()
        raise OSError

    try:
        with monkeypatch.context() as hanging:
            hanging.setattr("ingest_service.revocation.read_file", hang)
            asyncio.run(revocations.look())
        assert revocations.cover("stolen", "alice", 1)
        assert not revocations.cover("other", "alice", 1)

        asyncio.run(revocations.look())
        assert revocations.cover("other", "alice", 1)
    finally:
        end.set()


def test_a_mistake_that_stays_is_parsed_once_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To parse a large file holds up whoever is served meanwhile."""
    revoked, keys = tmp_path / "revoked.json", tmp_path / "keys.json"
    revoked.write_text("{}")
    keys.write_bytes(key_set(Key("a")))
    revocations, source = Revocations(revoked), JwkSet("ES256", JwksFile(keys))
    parse, parsed = json.loads, Mock()

    def counted(text: str, **options: Any) -> Any:
        parsed(text)
        return parse(text, **options)

    monkeypatch.setattr(json, "loads", counted)
    for file in (revoked, keys):
        file.write_text('{"jti": [5], "keys": []}')

    with structlog.testing.capture_logs() as seen:
        for _ in range(3):
            asyncio.run(revocations.look())
            asyncio.run(source.refresh())
    assert parsed.call_count == 2
    assert [entry["event"] for entry in seen] == ["revocations_unreadable", "jwks_unreadable"]

    revoked.write_text('{"jti": ["stolen"]}')
    keys.write_bytes(key_set(Key("b")))
    asyncio.run(revocations.look())
    asyncio.run(source.refresh())
    assert revocations.cover("stolen", "alice", 1)
    assert source.keys_for("b")
