"""What the pages on security name exists: a row without its test says nothing."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("docs/threat-model.md", "SECURITY.md")
#: In backquotes: a path of this repository, and of a test file perhaps a test in it.
NAMED = re.compile(
    r"`((?:[\w.-]+/)+[\w.-]*|Makefile|Dockerfile|[\w-]+\.(?:md|toml|yml))(?:::(\w+))?`"
)


def functions_of(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize("page", PAGES)
def test_every_path_and_every_test_that_a_page_names_exists(page: str) -> None:
    named = NAMED.findall((ROOT / page).read_text())

    for path, test in named:
        assert (ROOT / path).exists(), path
        # Such a file has rows of many kinds, which move: say which of them is meant.
        assert test or not path.startswith("tests/faults/test_row_"), f"{path} without a test"
        if test:
            assert test in functions_of(ROOT / path), f"{path}::{test}"
    assert any(path.startswith("tests/") for path, _ in named)


def test_every_item_of_the_checklist_names_what_fails() -> None:
    """A test, or a step of `make check`."""
    _, _, checklist = (ROOT / "docs/threat-model.md").read_text().partition("## Checklist")
    rows = [line.split("|")[1:-1] for line in checklist.splitlines() if re.match(r"\| \d+ ", line)]
    steps = re.search(r"^check: (.*?) ##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert steps is not None

    assert [int(number) for number, *_ in rows] == list(range(1, 18))
    for number, _, shown in rows:
        run = re.findall(r"`make (\w+)`", shown)
        assert set(run) <= {"check", "test", *steps[1].split()}, number
        assert run or NAMED.search(shown), number
