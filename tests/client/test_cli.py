"""The `ingest` command, in this process, against the service in memory."""

import json
from pathlib import Path
from typing import Protocol

import grpc
import pytest
from click.testing import CliRunner, Result

from ingest.cli.app import app
from ingest.cli.output import printable, to_json
from ingest.client import IngestClient
from ingest.events import new_event
from ingest.v1 import event_pb2
from tests.client.fake_service import Failure, FakeService

EXAMPLES = Path(__file__).parents[2] / "examples" / "github_webhooks.jsonl"


class Ingest(Protocol):
    """Runs the command with arguments and an input, and a token in the environment."""

    def __call__(self, *arguments: str, stdin: str | bytes = "", jwt: str = "t") -> Result: ...


@pytest.fixture
def ingest(service: FakeService) -> Ingest:
    """The command, as it finds its server and its token in the environment."""

    def run(*arguments: str, stdin: str | bytes = "", jwt: str = "t") -> Result:
        environment = {"INGEST_TARGET": service.target, "INGEST_TOKEN": jwt}
        return CliRunner().invoke(app, arguments, input=stdin, env=environment)

    return run


def objects(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_examples_are_submitted_and_waited_for(service: FakeService, ingest: Ingest) -> None:
    submitted = ingest("submit", str(EXAMPLES))
    assert submitted.exit_code == 0
    assert submitted.stderr.startswith("58 accepted, 0 duplicates, 0 rejected")
    receipts = objects(submitted.stdout)
    assert [receipt["line"] for receipt in receipts] == list(range(1, 59))
    waited = ingest("wait", "-", stdin=submitted.stdout)
    assert waited.exit_code == 0
    assert [event["event_id"] for event in objects(waited.stdout)] == [
        receipt["event_id"] for receipt in receipts
    ]
    again = ingest("submit", str(EXAMPLES))
    assert again.stderr.startswith("0 accepted, 58 duplicates, 0 rejected")
    assert len(service.events) == 58


def test_bad_lines_are_named_and_the_others_stored(service: FakeService, ingest: Ingest) -> None:
    result = ingest("submit", "-", stdin='{"type":"a"}\nx\n\n{"type":""}\n{"type":"b"}\n')
    assert result.exit_code == 1
    assert [receipt["line"] for receipt in objects(result.stdout)] == [1, 5]
    said = result.stderr.splitlines()
    assert said[:2] == [
        "line 2: not JSON: Expecting an object at column 1",
        "line 4: type: 1 to 255 bytes",
    ]
    assert said[2].startswith("2 accepted, 0 duplicates, 2 rejected")
    assert len(service.events) == 2


def test_every_rejected_line_is_named_even_unexplained(
    service: FakeService, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server explains the first 1,000 of a call; the others are known by what is missing."""
    take_all = service._take_all

    def terse(*arguments: object) -> object:
        answer = take_all(*arguments)  # type: ignore[arg-type]  # handed on as they come
        del answer.rejections[1:]
        return answer

    monkeypatch.setattr(service, "_take_all", terse)
    result = ingest("submit", "-", stdin='{"type":""}\n{"type":"a"}\n{"type":""}\n')
    assert [line.split(":")[0] for line in result.stderr.splitlines()[:2]] == ["line 1", "line 3"]


def test_receipts_go_where_they_are_wanted(ingest: Ingest, tmp_path: Path) -> None:
    receipts = tmp_path / "receipts.jsonl"
    result = ingest("submit", "-", "--receipts", str(receipts), stdin='{"type":"a"}\n')
    assert result.stdout == ""
    assert objects(receipts.read_text()) == [
        {"line": 1, "event_id": "event-0", "duplicate": False, "status": "PENDING"}
    ]


def test_a_submit_that_was_cut_short_is_resumed(service: FakeService, ingest: Ingest) -> None:
    lines = '{"type":"a"}\n' * 5
    service.failures += [
        Failure(code=grpc.StatusCode.PERMISSION_DENIED, reason="SCOPE_MISSING", after=True)
    ]
    first = ingest("submit", "-", stdin=lines)
    assert first.exit_code == 1
    assert "run the same command again" in first.stderr
    assert "Error: PERMISSION_DENIED SCOPE_MISSING" in first.stderr
    second = ingest("submit", "-", stdin=lines)
    assert second.exit_code == 0
    assert second.stderr.startswith("0 accepted, 5 duplicates")
    assert len(service.events) == 5


def test_an_empty_file_is_nothing_to_do(ingest: Ingest) -> None:
    result = ingest("submit", "-", stdin="")
    assert (result.exit_code, result.stdout) == (0, "")


def test_get_shows_numbers_as_they_were_sent(ingest: Ingest) -> None:
    """Not even a line break between the tokens may split the output line."""
    payload = '{"n": 1.00000000000000000001, "big": 9007199254740993}'
    line = f'{{"type":"a","idempotency_key":"k","payload":{payload}}}'
    ingest("submit", "-", stdin=line)
    shown = ingest("get", "--key", "k")
    assert payload in shown.stdout
    assert shown.stdout == ingest("get", "event-0").stdout
    assert json.loads(shown.stdout)["status"] == "PROCESSED"


def test_an_unknown_event_is_one_line(ingest: Ingest) -> None:
    result = ingest("get", "nowhere")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: NOT_FOUND EVENT_NOT_FOUND: a text\n"


def test_wait_fails_for_events_that_are_not_processed(service: FakeService, ingest: Ingest) -> None:
    service.final_status = event_pb2.EVENT_STATUS_INVALID
    ingest("submit", "-", stdin='{"type":"a"}\n')
    result = ingest("wait", "event-0", "nowhere")
    assert result.exit_code == 1
    assert [event["status"] for event in objects(result.stdout)] == ["INVALID", "NOT_FOUND"]
    assert result.stderr == "1 INVALID, 1 NOT_FOUND\n"


def test_wait_looks_once_when_the_time_is_up(service: FakeService, ingest: Ingest) -> None:
    ingest("submit", "-", stdin='{"type":"a"}\n{"type":"a"}\n')
    service.looks_pending = 1
    result = ingest("wait", "--timeout", "0", "event-0", "event-1")
    assert result.exit_code == 1
    assert [event["status"] for event in objects(result.stdout)] == ["PENDING", "PROCESSED"]


def test_wait_refuses_what_is_no_receipt(ingest: Ingest) -> None:
    assert ingest("wait", "-", stdin="\n").exit_code == 0
    result = ingest("wait", "-", stdin='{"line": 1}\n')
    assert result.exit_code == 2
    assert "line 1 of stdin is neither an id nor a receipt" in result.stderr


def test_list_shows_so_many_or_all(client: IngestClient, ingest: Ingest) -> None:
    client.submit_batch(new_event("a") for _ in range(230))
    assert len(objects(ingest("list").stdout)) == 50
    assert len(objects(ingest("list", "--limit", "3", "--type", "a").stdout)) == 3
    assert len(objects(ingest("list", "--all", "--status", "processed").stdout)) == 230
    assert objects(ingest("list", "--type", "b").stdout) == []


def test_a_table_shows_text_as_text(client: IngestClient, ingest: Ingest) -> None:
    client.submit(new_event("[red]x"))
    assert "[red]x" in ingest("list", "--table").stdout


@pytest.mark.parametrize("moment", ["2026-01-31", "2026-01-31T12:00:00", "soon"])
def test_a_time_needs_a_zone(ingest: Ingest, moment: str) -> None:
    result = ingest("list", "--after", moment)
    assert result.exit_code == 2
    assert "must be a time with a zone" in result.stderr


def test_counts_are_one_object(client: IngestClient, ingest: Ingest) -> None:
    client.submit(new_event("a"))
    assert objects(ingest("counts").stdout) == [{"PROCESSED": 1, "truncated": False}]


@pytest.mark.parametrize(
    "arguments",
    [
        ("get",),
        ("get", "a", "--key", "b"),
        ("submit",),
        ("submit", "no-such-file"),
        ("list", "--limit", "0"),
        ("list", "--status", "LOST"),
        ("counts", "--cert", str(EXAMPLES)),
        ("counts", "--plaintext", "--ca", str(EXAMPLES)),
        ("nonsense",),
    ],
)
def test_wrong_usage_is_exit_code_two(ingest: Ingest, arguments: tuple[str, ...]) -> None:
    result = ingest(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_a_token_is_needed(ingest: Ingest) -> None:
    result = ingest("counts", jwt="")
    assert result.exit_code == 2
    assert "set INGEST_TOKEN" in result.stderr


def test_options_stand_before_or_after_the_command(
    service: FakeService, ingest: Ingest, tmp_path: Path
) -> None:
    """What is typed beats the environment, wherever it stands."""
    (tmp_path / "token").write_text("from-file\n")
    ingest("--token", "before", "counts")
    ingest("counts", "--token", "after")
    ingest("--token", "before", "counts", "--token", "after")
    ingest("counts", "--token-file", str(tmp_path / "token"))
    ingest("counts")
    assert service.tokens == ["before", "after", "after", "from-file", "t"]


@pytest.mark.parametrize("command", [[], ["submit"], ["get"], ["wait"], ["list"], ["counts"]])
def test_every_help_has_an_example(ingest: Ingest, command: list[str]) -> None:
    result = ingest(*command, "--help")
    assert result.exit_code == 0
    assert "Example:\n" in result.stdout


def test_a_terminal_gets_nothing_to_obey() -> None:
    text = to_json({"a": "\x1b[31m\x9b\u202e"}, payload='{"b":\n"\x9b"}')
    assert text.isprintable()
    assert json.loads(text) == {"a": "\x1b[31m\x9b\u202e", "payload": {"b": "\x9b"}}
    assert printable("a\nb\x1b") == "a\\u000ab\\u001b"
