"""Which JSON texts the edge takes, and how it names what it refuses."""

import json
import time
from typing import Any

import pytest

from ingest_service.jsontext import MAX_DEPTH, JsonRefused, parse

#: Levels that orjson reads.
PARSER_DEPTH = 1_024


def refusal(text: str) -> tuple[str, str]:
    """Path and description of the refusal."""
    with pytest.raises(JsonRefused) as caught:
        parse(text)
    return caught.value.path, caught.value.description


@pytest.mark.parametrize("bracket", ["[", '{"a":'])
def test_as_many_levels_as_are_allowed(bracket: str) -> None:
    closing = "]" if bracket == "[" else "}"
    text = bracket * MAX_DEPTH + "1" + closing * MAX_DEPTH

    assert parse(text)[1] == text


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 255, 1_025, 6_000, 100_000])
@pytest.mark.parametrize("bracket", ["[", '{"a":', " [\n"])
def test_more_levels_are_refused_whatever_their_number(bracket: str, levels: int) -> None:
    closing = "]" if "[" in bracket else "}"

    path, description = refusal(bracket * levels + "1" + closing * levels)

    assert path == ""
    # Of objects beyond its own limit the parser does not tell that they are too deep.
    if "[" in bracket or levels <= PARSER_DEPTH:
        assert description == "must not be nested deeper than 64 levels"


@pytest.mark.parametrize("levels", [6_000, 100_000])
def test_brackets_without_end_are_refused(levels: int) -> None:
    assert refusal("[" * levels) == ("", "must not be nested deeper than 64 levels")


@pytest.mark.parametrize(
    "text, path",
    [
        (r'"a\u0000b"', ""),
        (r'{"a":"\u0000"}', ".a"),
        (r'{"a":[1,{"b":"x\u0000"}]}', ".a[1].b"),
        (r'{"a\u0000":1}', ".a\\u0000"),
        (r'["\\\u0000"]', "[0]"),
    ],
)
def test_nul_is_refused_with_its_path(text: str, path: str) -> None:
    assert refusal(text) == (path, "must not contain U+0000")


@pytest.mark.parametrize("text", [r'{"a":"\\u0000"}', r'"\\\\u0000"', r'{"\\u0000":1}'])
def test_a_backslash_and_the_word_u0000_are_only_text(text: str) -> None:
    assert parse(text)[0] == json.loads(text)


@pytest.mark.parametrize(
    "text", [r'"\ud800"', r'"\udc00"', r'"\udc00\ud800"', r'{"\ud800":1}', '"\ud800"']
)
def test_lone_and_reversed_surrogates_are_refused(text: str) -> None:
    assert refusal(text)[0] == ""


def test_a_surrogate_pair_is_one_character() -> None:
    assert parse(r'"\ud83d\ude00"')[0] == "😀"


@pytest.mark.parametrize(
    "number",
    [
        *("0", "-0", "-0.0", "1", "-1", "9007199254740991", "9007199254740993"),
        *(str(2**63 - 1), str(-(2**63)), str(2**63), str(2**64 - 1)),
        *("0.1", "1e2", "1E+2", "1.5e-7", "1e308", "1.7976931348623157e308", "5e-324", "0e999"),
    ],
)
def test_a_number_comes_back_as_it_was_sent(number: str) -> None:
    value, compact = parse(f'{{"n":{number}}}')

    assert value == json.loads(f'{{"n":{number}}}')
    assert type(json.loads(compact)["n"]) is type(json.loads(number))
    assert str(json.loads(compact)["n"]) == str(json.loads(number))


@pytest.mark.parametrize(
    "number",
    [
        *(str(2**64), str(-(2**63) - 1), "1" + "0" * 30, "9" * 5_000, "-" + "9" * 5_000),
        *("1e309", "-1e309", "1e5000", "1e-400", "1.5e-5000", "123456789e400"),
        *("0." + "0" * 400 + "1", "-0." + "0" * 300 + "1e-99", "0.000" + "0" * 230 + "1e-98"),
    ],
)
@pytest.mark.parametrize(
    "form, path",
    [("{}", ""), ('{{"n":{}}}', ".n"), ("[1,\n {}]", "[1]"), ('{{"a":[{{"b": {}}}]}}', ".a[0].b")],
)
def test_a_number_that_would_change_is_refused_with_its_path(
    form: str, path: str, number: str
) -> None:
    assert refusal(form.format(number)) == (path, "must be a 64-bit integer or a finite double")


def test_digits_inside_a_text_are_no_number() -> None:
    text = json.dumps({"phone": "1" * 40, "note": "[ 1e999, " + "2" * 30})

    assert parse(text)[0] == json.loads(text)


@pytest.mark.parametrize(
    "text, path",
    [
        ('{"a":1,"a":1}', ""),
        ('{"a":1,"a":2}', ""),
        ('{"a":1, "\\u0061":2}', ""),
        ('{"x":{"a":1,"b":2,"a":3}}', ".x"),
        ('[{"x":0},{"a":1,"a":{}}]', "[1]"),
        ('{"a":":","a":""}', ""),
        ('{"a":"\\u003a","a":1}', ""),
    ],
)
def test_a_repeated_key_is_refused_with_the_path_of_its_object(text: str, path: str) -> None:
    assert refusal(text) == (path, "must not repeat a key")


def test_the_same_key_in_two_objects_is_no_repetition() -> None:
    text = '{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}], "c": "a:a::"}'

    assert parse(text)[0] == json.loads(text)


@pytest.mark.parametrize("number", ["1e308", "1e-300", "-1.5e300"])
def test_numbers_that_would_be_written_out_at_length_are_refused_in_bulk(number: str) -> None:
    """PostgreSQL's JSONB writes 1e308 as 309 digits: 1 MiB of them would be 60 MiB there."""
    text = f"[{','.join([number] * 10_000)}]"

    assert refusal(text) == ("", "holds too many numbers with large exponents")


def test_a_few_such_numbers_are_welcome() -> None:
    text = json.dumps({"planck": 6.62607015e-34, "avogadro": 6.02214076e23, "most": 1e308})

    assert parse(text)[0] == json.loads(text)


@pytest.mark.parametrize(
    "value",
    [
        {f"k{number}": number for number in range(100_000)},
        {"k" * 1_000_000: 1},
        {"text": "x" * 1_000_000},
        {"text": 'é"\\' * 200_000},
        [1.5] * 100_000,
        ["a,b"] * 100_000,
        "0," * 500_000,
    ],
    ids=["keys", "long key", "long text", "escapes", "numbers", "texts", "commas"],
)
def test_large_but_honest_texts_are_parsed_fast(value: Any) -> None:
    text = json.dumps(value)
    started = time.process_time()

    assert parse(text)[0] == value
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([0] * 100_001),
        json.dumps({f"k{number}": number for number in range(100_001)}),
        json.dumps([[]] * 100_001),
        json.dumps([[0] * 1_000] * 100),
        json.dumps({"a": {"b": [0] * 99_999}}),
        "[" + "0," * 1_900_000 + "0]",
        "[" + "[]," * 300_000 + "[]]",
    ],
    ids=["elements", "members", "arrays", "in rows", "below", "4 MiB", "1 MiB of arrays"],
)
def test_more_members_and_elements_than_are_allowed_are_refused(text: str) -> None:
    started = time.process_time()

    with pytest.raises(JsonRefused) as refused:
        parse(text)

    assert (refused.value.path, refused.value.description) == (
        "",
        "must hold at most 100000 members and elements",
    )
    assert time.process_time() - started < 2


@pytest.mark.parametrize("last", [r'"\u0000"', "1e999", '{"a":1,"a":1}'])
def test_a_long_key_above_many_values_costs_no_more_than_its_length(last: str) -> None:
    """The path of each value would hold the key: terabytes, if it were made for each.

    In so long a text the place is not looked for at all; it would take a second.
    """
    text = f'{{"{"k" * 1_000_000}":[{"0," * 99_998}{last}]}}'
    started = time.process_time()

    path, _ = refusal(text)

    assert path == ""
    assert time.process_time() - started < 5


def test_a_long_key_is_cut_in_a_path() -> None:
    path, _ = refusal(f'{{"{"k" * 1_000}":[0,1e999]}}')

    assert path == "." + "k" * 60 + "...[1]"
