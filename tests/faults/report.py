"""What every row came to: printed at the end of the run, and written to a file."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Line:
    """One row of the fault table."""

    row: str
    title: str
    result: str = "not run"
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """The rows of one run."""

    form: str
    seed: int
    lines: list[Line] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def add(self, row: str, title: str) -> Line:
        """Begin a row."""
        line = Line(row=row, title=title)
        self.lines.append(line)
        return line

    def text(self) -> Sequence[str]:
        """Return the report as lines of Markdown."""
        seconds = time.monotonic() - self.began
        return (
            f"Fault suite, {self.form} form, seed {self.seed}, {seconds:.0f} s",
            "",
            "| row | fault | result | s | notes |",
            "|---|---|---|---|---|",
            *(
                f"| {line.row} | {line.title} | {line.result} | {line.seconds:.0f} |"
                f" {'; '.join(line.notes)} |"
                for line in sorted(self.lines, key=lambda line: _order(line.row))
            ),
        )

    def write(self, path: Path) -> None:
        """Write the report to a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(self.text()) + "\n")


def _order(row: str) -> tuple[int, str]:
    digits = "".join(character for character in row if character.isdigit())
    return int(digits or 0), row
