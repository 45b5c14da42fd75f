"""What may stand on the command line: text that can be sent, times, and streams."""

import math
import sys
from typing import IO, Any, BinaryIO

import click
from click.types import StringParamType


class _Text(StringParamType):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Take text; bytes that are not UTF-8 come in as lone surrogates, and cannot be sent."""
        text: str = super().convert(value, param, ctx)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail("must be UTF-8", param, ctx)
        return text


class _Seconds(click.FloatRange):
    """A time to wait, up to a year."""

    def __init__(self) -> None:
        super().__init__(0, 31_536_000)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Take a number; "nan" is none, and in no range, though it is below and above nothing."""
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return seconds


class Stream(click.File):
    """A file, or "-" for stdin or stdout, which may be closed."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> IO[Any]:
        """Open it."""
        if value == "-":
            name = "stdin" if "r" in self.mode else "stdout"
            if getattr(sys, name) is None:
                self.fail(
                    f'"-" stands for {name}, which is closed: open it, or give a file', param, ctx
                )
        return super().convert(value, param, ctx)


TEXT = _Text()
SECONDS = _Seconds()


def stdin() -> BinaryIO:
    """Answer stdin; raises click.UsageError when it is closed."""
    if sys.stdin is None:
        raise click.UsageError('"-" stands for stdin, which is closed: open it, or give EVENT_IDs')
    return sys.stdin.buffer


def require_stdout(instead: str = "send it to /dev/null") -> None:
    """Raise click.UsageError when stdout is closed; `instead` says what else may be done."""
    if sys.stdout is None:
        raise click.UsageError(f"stdout is closed: open it, or {instead}")
