"""Payloads that are small on the wire and would be large elsewhere: at most four times, or refused.

Elsewhere is the row in the database and what GetEvent answers, before the event is processed and
after: then its properties hold parts of the payload once more.
"""

import json
import random
from collections.abc import Callable

import grpc
import pytest
from google.protobuf.message import Message
from sqlalchemy import LargeBinary, Text, cast, func, select
from sqlalchemy.sql.functions import FunctionElement

from eventstore.schema import events
from ingest.v1 import event_pb2
from ingest.v1 import ingest_service_pb2 as pb
from ingest.v1.event_pb2 import EventInput
from tests.kit.caller import Caller, event, refusal_of, refused
from tests.kit.server import Service, closing_engine

#: Bytes of a payload: what a worker still takes, less the braces around it.
SIZE = (1 << 20) - 200
#: What rows and answers hold beside content.
FIXED = 2_000
#: What Structs may take besides: the smallest number is a byte as text, and eleven there.
STRUCTS_MORE = 64 << 10
FORMATS = (event_pb2.PAYLOAD_FORMAT_STRUCT, event_pb2.PAYLOAD_FORMAT_JSON)


def array(*elements: str) -> str:
    """Return an array that repeats these elements until it is a megabyte long."""
    once = ",".join(elements)
    return f'{{"a":[{",".join([once] * (SIZE // (len(once) + 1)))}]}}'


def text(part: str, key: str = "a") -> str:
    """Return an object with one text that repeats a part until it is a megabyte long."""
    return f'{{"{key}":"{part * (SIZE // len(part.encode()))}"}}'


def digits() -> list[str]:
    """Return digits in an order that no compression knows."""
    return [str(number) for number in random.Random(1).choices(range(10), k=SIZE // 2)]  # noqa: S311


TEXTS: dict[str, Callable[[], str]] = {
    "1e308": lambda: array("1e308"),
    "1e-300": lambda: array("1e-300"),
    "5e-324": lambda: array("5e-324"),
    "1e308 now and then": lambda: array("1e308", *["123456"] * 14),
    "1e-7": lambda: array("1e-7"),
    "zeros": lambda: array("0"),
    "digits": lambda: f'{{"a":[{",".join(digits())}]}}',
    "escaped controls": lambda: text(r"\u0001"),
    "escaped controls as keys": lambda: array(r'{"\u0001\u0002\u0003":1}'),
    "escaped pairs": lambda: text(r"\ud83d\ude00"),
    "astral letters": lambda: text("😀"),
    "deep arrays": lambda: array("[" * 8 + "]" * 8),
    "deep objects": lambda: array('{"":' * 8 + "0" + "}" * 8),
    # Few enough for Structs.
    "fewer zeros": lambda: f'{{"a":[{",".join("0" * 45_000)}]}}',
    "some zeros": lambda: f'{{"a":[{",".join("0" * 4_000)}]}}',
    "fewer empty keys": lambda: '{"a":[' + ",".join(['{"":0}'] * 20_000) + "]}",
    "empty keys": lambda: array('{"":0}'),
    "empty objects": lambda: array("{}"),
    "many keys": lambda: json.dumps({f"{n:x}": 0 for n in range(110_000)}, separators=(",", ":")),
    "a page": lambda: text("x", "page"),
    "a page of controls": lambda: text(r"\u0001", "page"),
    "a page and a referrer": lambda: (
        f'{{"page":"{"x" * (SIZE // 2)}","referrer":"{"y" * (SIZE // 2)}"}}'
    ),
    "a duration of many digits": lambda: text("9", "duration"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_no_text_costs_more_than_four_times_its_size(service: Service, name: str) -> None:
    wanted = event(payload_json=TEXTS[name]())
    assert len(wanted.payload_json.encode()) <= 1 << 20

    check(service, wanted)


def struct_of(values: int, fill: Callable[[Message], None]) -> EventInput:
    """Return an event with a Struct of so many values."""
    made = event()
    found = made.payload.fields["a"].list_value.values
    for _ in range(values):
        fill(found.add())
    return made


STRUCTS: dict[str, Callable[[], EventInput]] = {
    "controls": lambda: with_text("\x01" * 600_000),
    "controls, the most that fits": lambda: with_text("\x01" * 690_000),
    "controls, too many": lambda: with_text("\x01" * SIZE),
    "controls among letters": lambda: with_text("\x01abcdefghijklmno" * (SIZE // 20)),
    "quotes": lambda: with_text('"' * SIZE),
    "numbers": lambda: struct_of(80_000, lambda value: setattr(value, "number_value", 1e300)),
    "small numbers": lambda: struct_of(80_000, lambda value: setattr(value, "number_value", 1e-9)),
    "nulls": lambda: struct_of(150_000, lambda value: setattr(value, "null_value", 0)),
    "empty structs": lambda: struct_of(
        150_000,
        lambda value: value.struct_value.SetInParent(),  # type: ignore[attr-defined]  # mypy: a lambda's argument
    ),
    "page of controls": lambda: with_text("\x01" * 170_000, "page"),
    "page of controls among letters": lambda: with_text("\x01abcd" * 100_000, "page"),
    "page of more controls among letters": lambda: with_text("\x01abc" * 100_000, "page"),
    "numbers of many digits": lambda: struct_of(
        80_000, lambda value: setattr(value, "number_value", 0.12345678901234567)
    ),
    "page of controls beside long numbers": lambda: with_numbers("\x01" * 18_000, 30_000),
    "page of quotes": lambda: with_text('"' * 500_000, "page"),
    "few controls": lambda: with_text("\x01" * 500),
    "page of few controls": lambda: with_text("\x01" * 160, "page"),
    "attributes of controls": lambda: with_attributes("\x01" * 1_024),
    "attributes of few controls": lambda: with_attributes("\x01" * 3),
    "attributes of controls among letters": lambda: with_attributes("\x01abcd" * 200),
    "attributes of quotes": lambda: with_attributes('"' * 1_024),
}


def with_attributes(value: str) -> EventInput:
    return event(attributes={f"key{number}": value for number in range(64)})


def with_numbers(page: str, count: int) -> EventInput:
    """Return an event with a text, and so many doubles that are long to write."""
    made = with_text(page, "page")
    for _ in range(count):
        made.payload.fields["a"].list_value.values.add().number_value = -1.2345678901234567e-10
    return made


def with_text(value: str, key: str = "a") -> EventInput:
    made = event()
    made.payload.fields[key].string_value = value
    return made


@pytest.mark.parametrize("name", STRUCTS)
def test_no_struct_costs_more_than_four_times_its_size(service: Service, name: str) -> None:
    check(service, STRUCTS[name]())


ORDINARY: dict[str, Callable[[], EventInput]] = {
    "a log in colours": lambda: with_text("\x1b[31mred\x1b[0m and plain text\n" * 2_000, "log"),
    "a table with quotes": lambda: with_text('"a","b","c"\n' * 20_000, "csv"),
    "a page of HTML": lambda: with_text('<p class="first">\tone\n</p>\n' * 5_000, "page"),
    "JSON in a text": lambda: with_text('{"id":123,"name":"first name"}\n' * 5_000, "page"),
    "measurements": lambda: with_numbers('"long"\n' * 100, 10_000),
    "attributes": lambda: with_attributes('{"id":123,"name":"first name"}\n'),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_what_is_ordinary_is_taken(service: Service, name: str) -> None:
    alice = service.caller()
    alice.submit(ORDINARY[name]())
    service.process_all(alice)

    assert alice.counts() == {"PROCESSED": 1}


def test_what_is_too_much_as_struct_may_come_as_json(service: Service) -> None:
    """There it is sent as it is written."""
    wanted = STRUCTS["page of quotes"]()
    refusal = refused(service.caller().submit, wanted)
    (allowed,) = refusal.fields.values()
    as_json = event(payload_json=json.dumps({"page": '"' * 500_000}))

    assert allowed.endswith("unless as payload_json")
    assert service.caller().submit(as_json).event_id


def check(service: Service, wanted: EventInput) -> None:
    """Submit an event, process it, and measure what it costs; a refusal costs nothing."""
    alice, size = service.caller(), wanted.ByteSize()
    try:
        receipt = alice.submit(wanted)
    except grpc.RpcError as error:
        verdict = refusal_of(error).verdict
        assert verdict == ("INVALID_ARGUMENT", "FIELD_INVALID")
        assert alice.counts() == {}
        return
    costs = {"fresh " + name: cost for name, cost in measure(service, alice, receipt).items()}
    service.process_all(alice)
    costs |= measure(service, alice, receipt)
    room = {f"{when}answer in format {FORMATS[0]}": STRUCTS_MORE for when in ("fresh ", "")}
    too_much = {
        name: cost / size
        for name, cost in costs.items()
        if cost > 4 * size + FIXED + room.get(name, 0)
    }
    assert too_much == {}


def measure(service: Service, alice: Caller, receipt: event_pb2.EventReceipt) -> dict[str, int]:
    """Return the bytes of an event's content in the row and in each form of answer."""
    costs: dict[str, int] = {}
    for form in FORMATS:
        request = pb.GetEventRequest(event_id=receipt.event_id, payload_format=form)
        answer = alice.wire("GetEvent", request.SerializeToString())
        costs[f"answer in format {form}"] = len(answer)
    with closing_engine(service.database_url) as engine, engine.connect() as connection:
        columns = (events.c.payload, events.c.properties, events.c.attributes)
        is_postgresql = engine.dialect.name == "postgresql"
        sizes: list[FunctionElement[int]] = (
            [func.pg_column_size(column) for column in columns]
            if is_postgresql
            else [func.length(cast(column, LargeBinary)) for column in columns]
        )
        row = connection.execute(select(*sizes).where(events.c.id == receipt.event_id)).one()
        if is_postgresql:
            # On disk it is compressed; whoever reads it is sent this text.
            told = select(func.octet_length(cast(events.c.payload, Text)))
            costs["text"] = connection.execute(
                told.where(events.c.id == receipt.event_id)
            ).scalar_one()
    return costs | {"row": sum(size or 0 for size in row)}
