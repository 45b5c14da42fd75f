"""Payloads as JSON text, over the wire and on both databases: the same verdict everywhere."""

import json
import math
from collections.abc import Iterator, Sequence

from ingest.v1 import event_pb2
from ingest.v1.event_pb2 import EventInput
from tests.hostile.json_texts import MALFORMED, UNDECIDED, VALID, same
from tests.kit.caller import Caller, event, refused

NOT_JSON = "must be JSON text (RFC 8259) without NaN, Infinity and lone surrogates"


def rejections(alice: Caller, texts: Sequence[str]) -> dict[int, tuple[str, str]]:
    """Field and description of each rejected text, by its position."""
    answer = alice.stream([event(payload_json=text)] for text in texts)
    assert answer.received == len(texts)
    assert {one.reason for one in answer.rejections} <= {"FIELD_INVALID"}
    return {
        one.index: (one.field_violations[0].field, one.field_violations[0].description)
        for one in answer.rejections
    }


def test_the_corpus_is_as_large_as_it_should_be() -> None:
    assert len(MALFORMED) >= 200
    assert len(VALID) >= 90
    assert len(UNDECIDED) >= 30


def test_no_malformed_text_is_accepted(alice: Caller) -> None:
    found = rejections(alice, MALFORMED)

    assert [text for index, text in enumerate(MALFORMED) if index not in found] == []
    for index, text in enumerate(MALFORMED):
        assert found[index] == (f"events[{index}].payload_json", NOT_JSON), text
    assert alice.counts() == {}
    assert alice.is_served()


def test_every_valid_text_comes_back_with_the_same_value(alice: Caller) -> None:
    answer = alice.stream([event(payload_json=text)] for text in VALID)
    assert [VALID[one.index] for one in answer.rejections] == []

    for receipt, text in zip(answer.receipts, VALID, strict=True):
        stored = alice.get(receipt.event_id, payload_format=event_pb2.PAYLOAD_FORMAT_JSON)
        assert same(json.loads(stored.payload_json), json.loads(text)), text


def test_what_the_rfc_leaves_open_has_a_fixed_verdict_and_a_path(alice: Caller) -> None:
    found = rejections(alice, list(UNDECIDED))

    for index, (text, (path, words)) in enumerate(UNDECIDED.items()):
        assert found.get(index) == (f"events[{index}].payload_json{path}", words), text[:60]
    assert alice.counts() == {}
    assert alice.is_served()


def test_unary_calls_and_batches_judge_alike(alice: Caller) -> None:
    """Every fifth text of each kind, by itself and as the second event of a batch."""
    for text in [*MALFORMED[::5], *list(UNDECIDED)[::2]]:
        alone = refused(alice.submit, event(payload_json=text))
        among = refused(alice.batch, [event(), event(payload_json=text)])

        assert alone.verdict == among.verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
        assert all(path.startswith("event.payload_json") for path in alone.fields)
        assert all(path.startswith("events[1].payload_json") for path in among.fields)
    assert alice.counts() == {}


def large(kind: str) -> str:
    size = 1_000_000
    return {
        "keys": json.dumps({f"key {number}": number for number in range(70_000)}),
        "key": json.dumps({"k" * size: 1}),
        "text": json.dumps({"t": "x" * size}),
        "escapes": json.dumps({"t": "é😀\x01\\" * (size // 30)}),
        "zeros": json.dumps([0] * 100_000),
        "arrays": json.dumps([[]] * 100_000),
    }[kind]


def test_large_texts_are_stored_and_come_back(alice: Caller) -> None:
    for kind in ("keys", "key", "text", "escapes", "zeros", "arrays"):
        receipt = alice.submit(event(payload_json=large(kind)))
        stored = alice.get(receipt.event_id, payload_format=event_pb2.PAYLOAD_FORMAT_JSON)
        assert json.loads(stored.payload_json) == json.loads(large(kind)), kind


def test_no_text_grows_to_more_than_four_times_its_size(alice: Caller) -> None:
    """Neither in the answer nor, as JSONB writes numbers out, in the database."""

    def texts() -> Iterator[str]:
        for number in ("1e15", "1e16", "1e22", "1e99", "1E5", "1e-5", "1e-7", "5e-324", "1e308"):
            yield f"[{','.join([number] * 20_000)}]"

    for text in texts():
        answer = alice.stream([[event(payload_json=text)]])
        if answer.rejected:
            continue
        stored = alice.get(
            answer.receipts[0].event_id, payload_format=event_pb2.PAYLOAD_FORMAT_JSON
        )
        assert len(stored.payload_json) <= 4 * len(text), text[:20]


def nested_struct(levels: int) -> EventInput:
    found = event()
    struct = found.payload
    for _ in range(levels - 1):
        struct = struct.fields["a"].struct_value
    struct.fields["a"].number_value = 1
    return found


def test_structs_are_bounded_like_texts(alice: Caller) -> None:
    for levels in (1, 10, 25):
        assert alice.submit(nested_struct(levels)).event_id
    for number in (math.nan, math.inf, -math.inf):
        bad = event()
        bad.payload.fields["a"].list_value.values.add().number_value = number
        refusal = refused(alice.submit, bad)
        assert refusal.fields == {"event.payload.a[0]": "must be a finite number"}


def test_a_struct_value_without_a_kind_is_refused_with_its_path(alice: Caller) -> None:
    bad = event()
    bad.payload.fields["a"].struct_value.fields["b"].SetInParent()

    assert refused(alice.submit, bad).fields == {"event.payload.a.b": "must have a kind"}


def test_nul_in_a_struct_is_refused_in_keys_and_values(alice: Caller) -> None:
    for key, value in (("a\0", "x"), ("a", "x\0")):
        bad = event()
        bad.payload.fields[key].string_value = value
        refusal = refused(alice.submit, bad)
        assert refusal.verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
        assert all(path.startswith("event.payload.a") for path in refusal.fields)


def test_odd_keys_of_a_struct_are_only_keys(alice: Caller) -> None:
    found = event()
    for key in ("", "__proto__", "constructor", "a.b", "a[0]", "'", "\n", "😀", "\u202e"):
        found.payload.fields[key].string_value = key
    stored = alice.get(alice.submit(found).event_id)

    assert dict(stored.payload.items()) == {key: key for key in found.payload.fields}
