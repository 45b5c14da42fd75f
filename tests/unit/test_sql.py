"""SQL takes values by parameter only: no statement is put together from text that came in."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("eventstore", "ingest_service", "worker")
#: Calls that take a statement as their first argument.
RUN = {"text", "exec_driver_sql", "execute", "executemany", "executescript", "copy_expert", "DDL"}
#: The places where a statement is made from our own constants, with what is put in.
ALLOWED = {
    ("eventstore/prepared.py", "self.name"),
    ("eventstore/prepared.py", "self.types"),
    ("eventstore/prepared.py", "self.text"),
    # A pragma knows no parameters either; it is a whole number of milliseconds from our own clock.
    ("eventstore/engine.py", "left"),
    # A function's body knows no parameters; the name comes from quote_ident.
    ("eventstore/migrations/versions/0001_initial.py", "schema"),
    ("eventstore/migrations/versions/0002_fillfactor.py", "schema"),
    ("eventstore/migrations/versions/0003_housekeeping.py", "schema"),
}


def parts(statement: ast.expr) -> Iterator[str]:
    """Yield the source of everything that a statement is put together from."""
    match statement:
        case ast.JoinedStr(values=values):
            yield from (
                ast.unparse(value.value)
                for value in values
                if isinstance(value, ast.FormattedValue)
            )
        case ast.BinOp(left=left, right=right):
            yield from (*parts(left), *parts(right))
            yield from (
                ast.unparse(side) for side in (right,) if not isinstance(side, ast.Constant)
            )
        case ast.Call(func=ast.Attribute(attr="format" | "join" | "replace"), args=args):
            yield from map(ast.unparse, args)
            yield from (ast.unparse(keyword.value) for keyword in statement.keywords)
        case _:
            pass


def built(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and part for each statement that is not a constant as a whole."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else None
            name = node.func.id if isinstance(node.func, ast.Name) else name
            if name in RUN:
                yield from ((node.lineno, part) for part in parts(node.args[0]))


def test_no_statement_is_built_from_what_came_in() -> None:
    """Ruff's S608 looks for SQL words in f-strings; this looks at every call that runs SQL."""
    found = {
        (str(path.relative_to(ROOT)), part)
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for _, part in built(path.read_text())
    }

    assert found == ALLOWED


def test_the_check_sees_every_way_to_build_one() -> None:
    source = """
connection.execute(text(f"SELECT {a}"))
connection.exec_driver_sql("SELECT %s" % b)
text("SELECT " + c)
sa.text("SELECT {}".format(d))
op.execute("SELECT {x}".format(x=e))
cursor.execute(", ".join(f))
text("SELECT :a")
connection.execute(select(g))
"""
    assert {part for _, part in built(source)} == set("abcdef")


def test_ruff_looks_for_the_rest() -> None:
    """Neither the rule nor its whole family may be switched off."""
    configured = (ROOT / "pyproject.toml").read_text()

    assert 'select = ["ALL"]' in configured
    for rule in ('"S"', '"S6"', '"S60"', '"S608"', '"S3"', '"S311"', '"S324"', '"S1"'):
        assert rule not in configured
