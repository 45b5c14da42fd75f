"""JSON texts, written from RFC 8259: what is none, what is, and what the RFC leaves open.

Each text is UTF-8 text already: bytes that are none never get past protobuf (see test_wire.py).
"""

import math
from typing import Any


def _words(text: str) -> list[str]:
    return text.split()


_NUMBERS = _words(
    "+1 -01 01 00 -00 007 1. .1 -.1 1.e1 1e 1e+ 1e- 1E 1.5e 1.0e+ 0e 0.e1 - -- -x --1 +-1 ++1 1-2 "
    "1+2 0x1 0X1F 1_000 1,0 \u0661 \uff11 1a 1e1.5 1e1e1 1.1.1 .5e1 -.5 2.e-3 0b1 0o7 1L 1f 1d "
    "\u221e 1/2 NaN -NaN +NaN nan Infinity -Infinity +Infinity Inf inf -inf 1e1_0 e1 E .e1 . -. "
    "+.1 1e+-2 1e\u0663"
)
_WORDS = _words(
    "True False None NULL nil undefined truee tru nul nulll fals t f n yes no on off TRUE FALSE "
    "Null null1 true,false a abc 'a' `a` a:1 $ @ # ? * ( ) < > ; ! ~ | & % ^ = \\ \\n \\u0031 "
    "/**/ //"
)
_ARRAYS = _words(
    "[ ] [1 1] [,] [,1] [1,] [1,,2] [1,,] [[] []] [1:2] [a] [-] [1e] [1.] [.1] [01] [+1] [NaN] "
    '[tru] ["a" "b"] ["a",,] [1]] [[1] {1} [1} [1;2] [1/*x*/] [1,//x [1, ] [ ] [ ] [\ufeff] '
    '[\u2060] [...] [1,...] [None] [True] [\'a\'] [`a`] ["a] [a"] [""\x00] [1]x [1],[2] [1][2] '
    "(1) [1) ]1[ ]["
)
_OBJECTS = _words(
    '{ } {,} {"a"} {"a":} {"a":1,} {,"a":1} {"a":1,,"b":2} {"a":1 "b":2} {"a" 1} {"a"::1} {:1} '
    '{a:1} {\'a\':1} {1:1} {null:1} {true:1} {[]:1} {"a":1]} {"a":1}} {{"a":1} {"a":b} '
    '{"a":\'b\'} {"a":1;"b":2} {"a"=1} {"a"=>1} {"a",1} {"a":1,"b"} {"a":1}{"b":2} {"a":1}x '
    '{"a":1}/**/ /**/{"a":1} {"a":/**/1} {"a":01} {"a":+1} {"a":.5} {"a":5.} {"a":NaN} '
    '{"a":-Infinity} {"a":undefined} {"a":function(){}} {"a:1} {a":1} {"a":"b} {"a":b"} {"":} '
    '{"a":{"b":{"c":}}} {"a":[1,2}'
)
_BAD_ARRAYS = [text for text in _ARRAYS if text not in {"[1", "]"}]

#: Strings whose escapes or characters RFC 8259 forbids.
_STRINGS = [
    *(f'"{text}"' for text in (r"\a", r"\v", r"\0", r"\x41", r"\'", r"\ ", r"\U0041", r"\e")),
    *(
        f'"{text}"'
        for text in (r"\u", r"\u1", r"\u12", r"\u123", r"\u123g", r"\uD83D\u", r"\u+123")
    ),
    *(f'"{text}"' for text in ("\\", "\\\\\\", "\\u00A", "\\u{41}", "\\\n", "\\é", "\\u 041")),
    *(f'"a{chr(code)}b"' for code in range(0x20)),
    *('"', '"a', 'a"', '"""', '"a""', '"a" "b"', '"a"b', "'a'", "“a”", '"a\n"', '"\t"', '"a\\"'),
]
_BLANKS = [
    *("", " ", "\n", "\t\t", "\r\n", "\ufeff", "\ufeff{}", "\ufeff1", "\u00a01", "1\u00a0"),
    *("\x0b1", "1\x0c", "\u20281", "\u30001", "{}\x00", "\x00{}", "\u200b{}", "{}\u2060"),
    *("1 2", "1,2", "1\n2", "{}{}", "[][]", "null null", '"a" 1', "{} x", "[] ]", "1]", "}{"),
    *("/* c */ 1", "1 // c", "# c\n1", "<!-- -->1", "<json/>", "---\na: 1", "a = 1", "{}\x1a"),
]

#: Texts that are no JSON at all.
MALFORMED = sorted(
    {*_NUMBERS, *_WORDS, *_BAD_ARRAYS, *_OBJECTS, *_STRINGS, *_BLANKS}
    - {"{}", "[]", "{", "}", "[", "]"}
    | {"{", "}", "[", "]"}
)

_GOOD_STRINGS = [
    *(r'""', r'"a"', r'"\""', r'"\\"', r'"\/"', r'"\b\f\n\r\t"', r'"\u0041"', r'"\u00e9"'),
    *(r'"\ud83d\ude00"', r'"\uD834\uDD1E"', r'"\uFFFF"', r'"\uFDD0"', r'"\u0001"', r'"\u001f"'),
    *(r'"\u007f"', r'"\u2028"', r'"\ufeff"', r'"\\u0000"', r'"\\ud800"', r'"\u200B"', r'"\u003a"'),
    *(
        '"é"',
        '"😀"',
        '"\u2028"',
        '"\u007f"',
        '"\ufeff"',
        '"a/b"',
        '" "',
        '"\U0010ffff"',
        '"\ufdd0"',
    ),
    *(
        '"\'"',
        '"`"',
        '"${x}"',
        '"{{7*7}}"',
        '"<script>"',
        '"%s%n"',
        '"\u202eabc"',
        '"--"',
        '"\x80"',
    ),
]
_GOOD_NUMBERS = _words(
    "0 -0 1 -1 10 123456789 0.0 -0.0 0.1 -0.1 1.5 1e1 1E1 1e+1 1e-1 1.5E+10 0e0 0e+1 0E-1 -0e5 "
    "1e22 9007199254740991 9007199254740993 -9223372036854775808 9223372036854775807 "
    "18446744073709551615 1e308 1.7976931348623157e308 2.2250738585072014e-308 5e-324 "
    "0.30000000000000004 123e-5"
)
_GOOD_OTHERS = [
    *("true", "false", "null", "[]", "{}", "[[]]", "[{}]", "[1]", "[1,2]", "[ 1 , 2 ]", " [] "),
    *('{"a":1}', '{"a":{"b":[]}}', '{"":0}', '{"a":[1,{"b":null}]}', '{ "a" : 1 }', "\t[\n1\r]\n"),
    *('{"a\\u0001":1}', '{"\\"":1}', '{"a":1,"A":2}', '{"é":1}', '{"__proto__":{}}', '{"0":0}'),
    *('{"constructor":1,"toString":2}', '{"a b":1}', '[null,true,false,0,"",[],{}]', "[[[[[1]]]]]"),
    "[" * 64 + "]" * 64,
    '{"a":' * 64 + "1" + "}" * 64,
    "[" + "0," * 999 + "0]",
    '{"$ref":"#"}',
]

#: Texts that are JSON, and come back with the same value.
VALID = [*_GOOD_STRINGS, *_GOOD_NUMBERS, *_GOOD_OTHERS]

_NUMBER = "must be a 64-bit integer or a finite double"
_NOT_JSON = "must be JSON text (RFC 8259) without NaN, Infinity and lone surrogates"
_NUL = "must not contain U+0000"
_REPEATED = "must not repeat a key"
_DEEP = "must not be nested deeper than 64 levels"
_MANY = "holds too many numbers with large exponents"

#: Texts that the grammar allows and the RFC leaves to us (sections 4, 6, 8.2, 9): all are refused,
#: with the path of the value and these words.
UNDECIDED = {
    '{"a":1,"a":1}': ("", _REPEATED),
    '{"a":1,"a":2}': ("", _REPEATED),
    '{"x":{"b":1,"\\u0062":2}}': (".x", _REPEATED),
    '[{},{"":1,"":2}]': ("[1]", _REPEATED),
    "18446744073709551616": ("", _NUMBER),
    "-9223372036854775809": ("", _NUMBER),
    "1" + "0" * 400: ("", _NUMBER),
    "[" + "9" * 5_000 + "]": ("[0]", _NUMBER),
    "1e309": ("", _NUMBER),
    "-1e309": ("", _NUMBER),
    "[1e400]": ("[0]", _NUMBER),
    '{"n":1e5000}': (".n", _NUMBER),
    "1e-400": ("", _NUMBER),
    "[0.1e-999]": ("[0]", _NUMBER),
    '{"n":0.' + "0" * 400 + "1}": (".n", _NUMBER),
    "123123e100000": ("", _NUMBER),
    "-123123e100000": ("", _NUMBER),
    "0.4e00669999999999999999999999999999999999999999999999999999999999999999969999999006": (
        "",
        _NUMBER,
    ),
    r'"\u0000"': ("", _NUL),
    r'{"a":["\u0000"]}': (".a[0]", _NUL),
    r'{"a\u0000b":1}': (".a\\u0000b", _NUL),
    r'"\ud800"': ("", _NOT_JSON),
    r'"\udc00"': ("", _NOT_JSON),
    r'"\ud800\u0041"': ("", _NOT_JSON),
    r'"\ud800\ud800"': ("", _NOT_JSON),
    r'"\udc00\ud800"': ("", _NOT_JSON),
    r'"\ud83dx"': ("", _NOT_JSON),
    r'{"\ud800":1}': ("", _NOT_JSON),
    r'["\ud83d\ude00\ud83d"]': ("", _NOT_JSON),
    "[" * 65 + "]" * 65: ("", _DEEP),
    "[" * 500 + "]" * 500: ("", _DEEP),
    "[" * 100_000 + "]" * 100_000: ("", _DEEP),
    '{"a":' * 100 + "1" + "}" * 100: ("", _DEEP),
    f"[{','.join(['1e308'] * 1_000)}]": ("", _MANY),
    f"[{','.join(['1e-300'] * 1_000)}]": ("", _MANY),
}


def same(one: Any, other: Any) -> bool:
    """Equal in kind and value; PostgreSQL's JSONB alone does not know of a negative zero."""
    if isinstance(one, float) or isinstance(other, float):
        return math.isclose(one, other, rel_tol=0, abs_tol=0)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
