"""What nobody should give the `ingest` command: the real command says in a line what it wants."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.fake_service import FakeService

INGEST = Path(sys.executable).parent / "ingest"
NOT_UTF8 = b"\xff\xfe"
NO_RECEIPT = "line 1 of stdin is neither an id nor a receipt with an event_id"
ARGUMENTS: dict[str, tuple[list[bytes], str]] = {
    "an id": ([b"get", NOT_UTF8], "'[EVENT_ID]': must be UTF-8"),
    "a key": ([b"get", b"--key", NOT_UTF8], "'--key': must be UTF-8"),
    "an id to wait for": ([b"wait", NOT_UTF8], "'[EVENT_ID]...|-': must be UTF-8"),
    "no id to wait for": (
        [b"wait", b"a", b""],
        "'[EVENT_ID]...|-': an event_id must not be empty",
    ),
    "a type": ([b"list", b"--type", NOT_UTF8], "'--type': must be UTF-8"),
    "a source": ([b"list", b"--source", NOT_UTF8], "'--source': must be UTF-8"),
    "a target": ([b"counts", b"--target", NOT_UTF8], "(env var: 'INGEST_TARGET'): must be UTF-8"),
    "a token": ([b"counts", b"--token", NOT_UTF8], "(env var: 'INGEST_TOKEN'): must be UTF-8"),
    "after the last year": (
        [b"list", b"--after", b"9999-12-31T23:59:59-23:59"],
        "'--after': must lie in the years 1 to 9999, in UTC",
    ),
    "before the first year": (
        [b"list", b"--before", b"0001-01-01T00:00:00+23:59"],
        "'--before': must lie in the years 1 to 9999, in UTC",
    ),
    **{
        f"an offset of {offset}": (
            [b"list", b"--after", b"2026-01-31T12:00:00" + offset.encode()],
            "'--after': must be a time with a zone such as 2026-01-31T12:00:00Z",
        )
        for offset in ("+24:00", "+22:60", "-2299", "+01:00:60")
    },
    "a huge limit": (
        [b"list", b"--limit", b"9" * 23],
        "'--limit': 99999999999999999999999 is not in the range 1<=x<=1000000000",
    ),
    **{
        f"a limit of {number}": ([b"list", b"--limit", number.encode()], f"'--limit': {told}")
        for number, told in {
            "nan": "'nan' is not a valid integer",
            "inf": "'inf' is not a valid integer",
            "1e3": "'1e3' is not a valid integer",
            "0": "0 is not in the range 1<=x<=1000000000",
            "-1": "-1 is not in the range 1<=x<=1000000000",
        }.items()
    },
    **{
        f"{number!r} seconds": ([b"wait", b"--timeout", number.encode(), b"a"], told)
        for number, told in {
            "nan": "'--timeout': nan is not in the range 0<=x<=31536000",
            "-NaN": "'--timeout': -NaN is not in the range 0<=x<=31536000",
            "inf": "'--timeout': inf is not in the range 0<=x<=31536000",
            "1e400": "'--timeout': inf is not in the range 0<=x<=31536000",
            "-inf": "'--timeout': -inf is not in the range 0<=x<=31536000",
            "-1": "'--timeout': -1.0 is not in the range 0<=x<=31536000",
            "1e9": "'--timeout': 1000000000.0 is not in the range 0<=x<=31536000",
            "soon": "'--timeout': 'soon' is not a valid float",
            "": "'--timeout': '' is not a valid float",
        }.items()
    },
}
STDIN = {
    "binary": NOT_UTF8,
    "a binary receipt": b'{"event_id": "\xff"}',
    "very deep": b'{"a":' * 100_000,
    "a lone surrogate": rb'{"event_id": "\ud800"}',
    "an id that is no text": b'{"event_id": ["a"]}',
    "an id that is empty": b'{"event_id": ""}',
    "no object": b"{1}",
}
CLOSED = {
    "stdin of wait": ("wait -", "<&-", '"-" stands for stdin, which is closed: open it, or give'),
    "stdin of submit": ("submit -", "<&-", "'FILE': \"-\" stands for stdin, which is closed"),
    "stdout of submit": ("submit -", ">&-", "stdout is closed: open it, or give --receipts FILE"),
    "stdout for receipts": (
        "submit - --receipts -",
        ">&-",
        "'--receipts': \"-\" stands for stdout, which is closed",
    ),
    "stdout of get": ("get a", ">&-", "stdout is closed: open it, or send it to /dev/null"),
    "stdout of wait": ("wait a", ">&-", "stdout is closed"),
    "stdout of list": ("list --table", ">&-", "stdout is closed"),
    "stdout of counts": ("counts", ">&-", "stdout is closed"),
}


@pytest.fixture
def environment(service: FakeService) -> dict[str, str]:
    return {**os.environ, "INGEST_TARGET": service.target, "INGEST_TOKEN": "t"}


def refuse(environment: dict[str, str], *command: str | bytes | Path, stdin: bytes = b"") -> str:
    """Run a command that is wrong usage, and return the line that says what is wrong."""
    ended = subprocess.run(
        command, input=stdin, env=environment, capture_output=True, check=False, timeout=30
    )
    assert (ended.returncode, ended.stdout) == (2, b""), ended.stderr
    said = ended.stderr.decode().splitlines()
    assert said[0].startswith("Usage: ingest ")
    assert [line for line in said if line.startswith("Error: ")] == said[-1:]
    return said[-1]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_that_cannot_be_used_is_named(
    service: FakeService, environment: dict[str, str], name: str
) -> None:
    arguments, reason = ARGUMENTS[name]
    assert reason in refuse(environment, INGEST, *arguments)
    assert service.calls == []


@pytest.mark.parametrize("name", STDIN)
def test_what_is_no_receipt_is_named_by_its_line(environment: dict[str, str], name: str) -> None:
    assert NO_RECEIPT in refuse(environment, INGEST, "wait", "-", stdin=STDIN[name])


@pytest.mark.parametrize("name", CLOSED)
def test_a_stream_that_is_closed_is_named(
    service: FakeService, environment: dict[str, str], name: str
) -> None:
    arguments, closing, reason = CLOSED[name]
    shell = f'exec "$0" {arguments} {closing}'
    assert reason in refuse(environment, "sh", "-c", shell, INGEST, stdin=b'{"type": "a"}\n')
    assert service.calls == []


@pytest.mark.parametrize("command", [["counts"], ["submit", "-"]])
def test_a_token_file_that_holds_no_text_is_named(
    service: FakeService, environment: dict[str, str], tmp_path: Path, command: list[str]
) -> None:
    file = tmp_path / "token"
    file.write_bytes(NOT_UTF8)
    arguments = (*command, "--token-file", str(file))
    said = refuse(environment, INGEST, *arguments, stdin=b'{"type": "a"}\n')
    assert "--token-file: must hold a JWT, which is ASCII" in said
    assert service.calls == []


def test_receipts_in_a_file_need_no_stdout(
    service: FakeService, environment: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "receipts"
    shell = f'exec "$0" submit - --receipts {file} >&-'
    subprocess.run(
        ["sh", "-c", shell, INGEST],
        input=b'{"type": "a"}\n',
        env=environment,
        check=True,
        timeout=30,
    )
    assert '"event_id": "event-0"' in file.read_text()
