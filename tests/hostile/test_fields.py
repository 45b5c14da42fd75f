"""Every field of an event with what should not be in it: status, reason and path, and no more."""

import json
import time

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.v1 import event_pb2
from ingest.v1.event_pb2 import EventInput
from ingest.v1.ingest_service_pb2 import SubmitEventRequest
from tests.kit.caller import Caller, at, event, refused

CONTROLS = [*(chr(code) for code in range(0x20)), "\x7f", "\x80", "\x85", "\x9f"]
#: Texts that upset somebody else's parser; here they are only texts.
STRINGS = [
    *("' OR 1=1 --", "'; DROP TABLE events; --", "$(reboot)", "`id`", "| cat /etc/passwd", "%00"),
    *("{{7*7}}", "${jndi:ldap://127.0.0.1/a}", "*)(uid=*))(|(uid=*", "<script>alert(1)</script>"),
    *(
        "../../../etc/passwd",
        "%s%s%n",
        "\\N",
        "\\.",
        "\\",
        "NULL",
        "null",
        "None",
        "NaN",
        "{}",
        "--",
    ),
    *("😀", "\u202eabc", "\u200b", "\ufeff", "İ", "ß", "e\u0301", "\U0010ffff", "\ufffe", "\u2028"),
    *(
        "a b",
        " lead",
        "trail ",
        "a\u00a0b",
        "=1+1",
        "@x",
        "a,b;c",
        '"',
        "''",
        "\\\\t",
        "{a,b}",
        "\\x00",
    ),
]
TEXT_FIELDS = ("source", "subject", "idempotency_key")


def made(field: str, value: str) -> EventInput:
    fields = {field: value} if field != "type" else {}
    return event(value if field == "type" else "page.viewed", **fields)


@pytest.mark.parametrize("field", ["type", *TEXT_FIELDS])
def test_control_characters_are_refused_in_every_short_text(alice: Caller, field: str) -> None:
    answer = alice.stream([made(field, f"a{control}b")] for control in CONTROLS)

    assert answer.rejected == len(CONTROLS)
    for one in answer.rejections:
        (violation,) = one.field_violations
        assert violation.field == f"events[{one.index}].{field}"
        least = 1 if field == "type" else 0
        allowed = f"must be {least} to 255 bytes without control characters"
        assert violation.description == allowed
    assert alice.counts() == {}


@pytest.mark.parametrize("field", ["type", *TEXT_FIELDS])
@pytest.mark.parametrize("text", ["x" * 256, "é" * 128, "😀" * 64, "x" * 10_000, "x" * 1_000_000])
def test_a_text_that_is_too_long_is_refused(alice: Caller, field: str, text: str) -> None:
    refusal = refused(alice.submit, made(field, text))

    assert refusal.verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert set(refusal.fields) == {f"event.{field}"}


@pytest.mark.parametrize("text", ["x" * 255, "é" * 127, "😀" * 63])
def test_the_longest_text_is_stored_in_every_field(alice: Caller, text: str) -> None:
    sent = event(text, **dict.fromkeys(TEXT_FIELDS, text))
    stored = alice.get(alice.submit(sent).event_id)

    assert {stored.type, stored.source, stored.subject, stored.idempotency_key} == {text}


def test_strings_of_every_kind_come_back_byte_for_byte(alice: Caller) -> None:
    for text in STRINGS:
        sent = event(
            text,
            **dict.fromkeys(TEXT_FIELDS, text),
            attributes={text: text},
            payload={text: [text, {text: text}]},
        )
        receipt = alice.submit(sent)
        stored = alice.get(receipt.event_id, payload_format=event_pb2.PAYLOAD_FORMAT_JSON)

        assert {stored.type, stored.source, stored.subject, stored.idempotency_key} == {text}
        assert dict(stored.attributes) == {text: text}
        assert json.loads(stored.payload_json) == {text: [text, {text: text}]}
        assert alice.get(idempotency_key=text).event_id == receipt.event_id
        assert [one.event_id for one in alice.list(type=text, source=text).events] == [
            receipt.event_id
        ]
    assert alice.counts() == {"PENDING": len(STRINGS)}


@pytest.mark.parametrize(
    "seconds, nanos",
    [
        *((2**62, 0), (-(2**62), 0), (2**63 - 1, 0), (-(2**63), 0), (-62_135_596_801, 0)),
        *((253_402_300_800, 0), (0, -1), (0, 2_000_000_000), (0, 2**31 - 1), (0, -(2**31))),
    ],
)
def test_times_that_are_none_are_refused(alice: Caller, seconds: int, nanos: int) -> None:
    bad = event(occurred_at=Timestamp(seconds=seconds, nanos=nanos))
    refusal = refused(alice.submit, bad)

    assert refusal.verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert set(refusal.fields) == {"event.occurred_at"}


@pytest.mark.parametrize("ahead", [2 * 3_600, 86_400, 3e9])
def test_a_clock_that_is_far_ahead_is_refused(alice: Caller, ahead: float) -> None:
    refusal = refused(alice.submit, event(occurred_at=at(time.time() + ahead)))

    assert refusal.fields == {"event.occurred_at": "must not be more than one hour ahead"}


@pytest.mark.parametrize(
    "attributes, path",
    [
        ({f"k{number}": "" for number in range(65)}, "event.attributes"),
        ({"": "x"}, "event.attributes"),
        ({"k" * 65: "x"}, "event.attributes"),
        ({"é" * 33: "x"}, "event.attributes"),
        ({"a\nb": "x"}, "event.attributes"),
        ({"a\0b": "x"}, "event.attributes"),
        ({"k": "x" * 1_025}, "event.attributes[k]"),
        ({"k": "é" * 513}, "event.attributes[k]"),
        ({"k": "a\0b"}, "event.attributes[k]"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_attributes_are_bounded(alice: Caller, attributes: dict[str, str], path: str) -> None:
    refusal = refused(alice.submit, event(attributes=attributes))

    assert refusal.verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert path in refusal.fields


def test_attributes_up_to_their_bounds_are_stored(alice: Caller) -> None:
    attributes = {f"{number:02d}{'k' * 62}": "x" * 1_024 for number in range(63)}
    attributes["k"] = "a\nb\t\x1b[31m"

    assert dict(alice.get(alice.submit(event(attributes=attributes)).event_id).attributes) == (
        attributes
    )


def test_a_flood_of_violations_is_answered_with_a_few(alice: Caller) -> None:
    """The details travel as metadata, which has a size."""
    bad = event("", source="\0" * 300, attributes={f"k{number}": "\0" for number in range(64)})
    refusal = refused(alice.batch, [bad] * 1_000)

    assert refusal.verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert 1 <= len(refusal.fields) <= 20


def test_a_flood_of_long_paths_fits_the_answer(alice: Caller) -> None:
    key = "😀" * 50
    deep = f'{{"{key}":' * 20 + "1e999" + "}" * 20
    refusal = refused(alice.batch, [event(payload_json=deep)] * 500)

    assert refusal.verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert refusal.fields


def test_a_struct_with_a_long_key_above_many_values_is_judged_at_once(alice: Caller) -> None:
    bad = event()
    values = bad.payload.fields["k" * 1_000_000].list_value.values
    for _ in range(99_998):
        values.add().bool_value = True
    values.add().number_value = float("nan")
    started = time.monotonic()

    refusal = refused(alice.submit, bad)

    assert time.monotonic() - started < 3
    assert set(refusal.fields) == {"event.payload." + "k" * 60 + "...[99998]"}


@pytest.mark.parametrize("form", ["payload", "payload_json"])
def test_an_event_has_as_many_values_as_are_documented_and_no_more(
    alice: Caller, form: str
) -> None:
    """A member and its hundred elements, a thousand times; what is refused is refused at once."""

    def submit(last: int) -> None:
        value = {f"k{number}": [0] * 99 for number in range(999)} | {"k": [0] * last}
        wanted = event()
        if form == "payload":
            wanted.payload.update(value)
        else:
            wanted.payload_json = json.dumps(value)
        alice.submit(wanted)

    submit(99)
    refusal = refused(submit, 100)

    assert refusal.fields == {f"event.{form}": "must hold at most 100000 members and elements"}


def test_long_paths_do_not_outgrow_the_answer(alice: Caller) -> None:
    """Keys come from the caller, and a path is made of keys."""
    for payload in ('{"%s":1e999}' % ("k" * 100_000), '{"%s":"\\u0000"}' % ("é\\n" * 20_000)):
        refusal = refused(alice.submit, event(payload_json=payload))

        assert refusal.verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
        assert all(len(path) <= 1_000 for path in refusal.fields)
    refusal = refused(alice.submit, event(attributes={"k" * 100_000: "x"}))
    assert refusal.verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert alice.is_served()


def test_a_path_holds_no_control_characters(alice: Caller) -> None:
    refusal = refused(alice.submit, event(payload_json='{"a\\n\\u001b[31m":1e999}'))

    assert all(path.isprintable() for path in refusal.fields), refusal.fields


texts = st.text(max_size=300) | st.sampled_from(STRINGS + CONTROLS)
events = st.builds(
    EventInput,
    type=texts,
    source=texts,
    subject=texts,
    payload_json=texts | st.sampled_from(["{}", '{"a":1}', "[]", "null"]),
    attributes=st.dictionaries(texts, texts, max_size=3),
    occurred_at=st.none() | st.builds(Timestamp, seconds=st.integers(-(2**63), 2**63 - 1)),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(batch=st.lists(events, min_size=1, max_size=8))
def test_whatever_an_event_holds_it_is_stored_as_sent_or_refused_by_field(
    alice: Caller, batch: list[EventInput]
) -> None:
    answer = alice.stream([batch])

    assert answer.received == len(batch) == answer.accepted + answer.rejected
    assert {one.reason for one in answer.rejections} <= {"FIELD_INVALID"}
    for one in answer.rejections:
        assert all(v.field.startswith(f"events[{one.index}].") for v in one.field_violations)
    for receipt in answer.receipts:
        stored, sent = alice.get(receipt.event_id), batch[receipt.index]
        assert (stored.type, stored.source, stored.subject) == (
            sent.type,
            sent.source,
            sent.subject,
        )
        assert stored.attributes == sent.attributes


def test_a_struct_may_have_the_levels_that_are_documented_and_no_more(alice: Caller) -> None:
    def submit(levels: int) -> None:
        request = SubmitEventRequest(event=event())
        inner = request.event.payload
        for _ in range(levels - 1):
            inner = inner.fields["a"].struct_value
        inner.fields["a"].number_value = 1
        alice.stub.SubmitEvent(request, metadata=alice.metadata, timeout=20)

    submit(33)
    assert refused(submit, 34).verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
    alice.submit(event(payload=json.loads('{"a":' * 34 + "1" + "}" * 34)))
