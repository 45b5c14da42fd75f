"""JSON Lines: what becomes of a line, and of a line that is broken."""

from io import BytesIO

import pytest

from ingest.cli import lines
from ingest.cli.lines import BrokenLine, numbered_lines, read_event


def test_every_member_arrives() -> None:
    event = read_event(
        1,
        b'{"type": "a", "source": "s", "subject": "t", "idempotency_key": "k",'
        b' "occurred_at": "2026-01-31T12:00:00.123456789+01:00",'
        b' "attributes": {"ip": "::1"}, "payload": {"page": "/"}}',
    )
    assert (event.type, event.source, event.subject, event.idempotency_key) == ("a", "s", "t", "k")
    assert event.occurred_at.ToJsonString() == "2026-01-31T11:00:00.123456789Z"
    assert dict(event.attributes) == {"ip": "::1"}
    assert event.payload_json == '{"page": "/"}'


@pytest.mark.parametrize(
    "payload",
    [
        "1.00000000000000000000000000001",
        "9007199254740993",
        "1e5000",
        "-0",
        "9" * 5_000,
        '{"a":1,"a":2}',
        '[ 1,\t2 , {"x" : [] } ]',
        '"\\u00e9 \\ud83d\\ude00 é"',
        "null",
        '"}"',
    ],
)
def test_a_payload_arrives_as_it_is_written(payload: str) -> None:
    line = f'{{"type":"a", "payload" :  {payload}  , "source":"s"}}'
    event = read_event(1, line.encode())
    assert event.payload_json == payload
    assert event.source == "s"


def test_no_payload_is_no_payload() -> None:
    assert read_event(1, b'{"type":"a"}').WhichOneof("body") is None


@pytest.mark.parametrize(
    "line, why",
    [
        (b"x", "not JSON: Expecting an object at column 1"),
        (b"[]", "not JSON: Expecting an object at column 1"),
        (b"{", "not JSON: Expecting a member name at column 2"),
        (b'{"type":"a"', "not JSON: Expecting ',' or '}' at column 12"),
        (b'{"type":"a",}', "not JSON: Expecting a member name at column 13"),
        (b'{"type" "a"}', "not JSON: Expecting ':' at column 9"),
        (b'{"type":}', "not JSON: Expecting value at column 9"),
        (b'{"type":"a"} {}', "not JSON: Extra data at column 14"),
        (b'{"payload":NaN}', "not JSON: NaN"),
        (b'{"payload":{"x":-Infinity}}', "not JSON: -Infinity"),
        (b'{"payload":01}', "not JSON: Expecting ',' or '}' at column 13"),
        (b'{"type":"\xff"}', "not UTF-8 at byte 9"),
        (b'{"type":"\\ud800"}', "a string holds a lone surrogate"),
        (b'{"attributes":{"a":"\\ud800"}}', "a string holds a lone surrogate"),
        (b'{"typ":"a"}', '"typ" is no field; known are type, source'),
        (b'{"type":"a","type":"b"}', "type: given twice"),
        (b'{"type":1}', "type: must be a string"),
        (b'{"source":null}', "source: must be a string"),
        (b'{"occurred_at":1}', "occurred_at: must be a string"),
        (b'{"occurred_at":"yesterday"}', "occurred_at: must be a time with a zone"),
        (b'{"occurred_at":"2026-01-31T12:00:00"}', "occurred_at: must be a time with a zone"),
        (b'{"occurred_at":"2026-02-31T12:00:00Z"}', "occurred_at: must be a time with a zone"),
        (b'{"attributes":[]}', "attributes: must be an object"),
        (b'{"attributes":{"a":1}}', 'attributes: "a" must be a string'),
        (b'{"attributes":{"a":%s}}' % (b"9" * 5_000), 'attributes: "a" must be a string'),
        (b'{"attributes":{"a":"1","a":"2"}}', "attributes: a name is given twice"),
        (b'{"payload":' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_broken_line_says_why(line: bytes, why: str) -> None:
    with pytest.raises(BrokenLine) as caught:
        read_event(1, line)
    assert str(caught.value).startswith(why)


@pytest.mark.parametrize(
    "written, sent",
    [
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z"),
        ("2026-01-31T12:00:00+00:00", "2026-01-31T12:00:00Z"),
        ("2026-01-31T12:00:00-00:00", "2026-01-31T12:00:00Z"),
        ("2026-01-31T12:00:00+23:59", "2026-01-30T12:01:00Z"),
        ("2026-01-31T12:00:00.5-23:59", "2026-02-01T11:59:00.500Z"),
        ("2024-02-29T23:59:59.999999999Z", "2024-02-29T23:59:59.999999999Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"),
    ],
)
def test_a_time_is_sent_as_it_is_written(written: str, sent: str) -> None:
    event = read_event(1, f'{{"occurred_at":"{written}"}}'.encode())
    assert event.occurred_at.ToJsonString() == sent


@pytest.mark.parametrize(
    "written",
    [
        *(f"2026-01-31T12:00:00{offset}" for offset in ("+99:99", "+24:00", "-24:00", "+00:60")),
        *(f"2026-01-31T12:00:00{offset}" for offset in ("+1:00", "+0100", "+01", "+-1:30", "z")),
        *(f"2026-01-31T12:00:00{rest}" for rest in (".Z", ".1_0Z", ".1e5Z", ".1234567890Z", " Z")),
        *(f"2026-01-31T{time}Z" for time in ("24:00:00", "12:60:00", "12:00:60", "1:1:1", "12:00")),
        *(f"{day}T12:00:00Z" for day in ("2026-13-01", "2026-00-01", "2026-01-32", "2026-01-00")),
        *(f"{day}T12:00:00Z" for day in ("2026-02-29", "2026-1-1", "26-01-01", "0000-01-01")),
        *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "٢٠٢٦-01-31T12:00:00Z"),
        *("2026-01-31 12:00:00Z", "2026-01-31t12:00:00Z", "2026-01-31T12:00:00Z\\n"),
    ],
)
def test_what_is_no_time_of_rfc_3339_is_refused(written: str) -> None:
    """And nothing is made of it: protobuf would take hours of 99, and years of other digits."""
    with pytest.raises(BrokenLine, match=r"^occurred_at: must be a time .* \(RFC 3339\)$"):
        read_event(1, f'{{"occurred_at":"{written}"}}'.encode())


def test_a_line_without_a_key_gets_one_of_its_own() -> None:
    """The same at each run, and another for an equal line elsewhere."""
    line = b'{"type":"a"}'
    key = read_event(1, line).idempotency_key
    assert key == read_event(1, line).idempotency_key
    assert key != read_event(2, line).idempotency_key
    assert key != read_event(1, b'{"type":"b"}').idempotency_key


def test_lines_are_numbered_from_one_and_blank_ones_skipped() -> None:
    file = BytesIO(b'\xef\xbb\xbf{"a"}\r\n\n  \n{"b"}')
    assert list(numbered_lines(file)) == [(1, b'{"a"}', 10), (4, b'{"b"}', 19)]


def test_a_line_without_end_is_not_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LONGEST_LINE", 10)
    file = BytesIO(b"x" * 1_000 + b"\n" + b"y" * 10 + b"\n")
    assert list(numbered_lines(file)) == [(1, b"x" * 11, 1_001), (2, b"y" * 10, 1_012)]
    with pytest.raises(BrokenLine, match="longer than 10 bytes"):
        read_event(1, b"x" * 11)
