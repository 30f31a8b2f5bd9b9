"""Text tables that fit a terminal, and what of a value can be shown."""

import math
import os
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Column", "elide", "finite", "line_width", "natural", "printable", "table", "wrap"]

_NAME = 32
"""Characters of the first column that other columns make room for."""

_UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""Control characters, those that turn the direction of what follows, and what is no character."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    `right` aligns its cells to the right. Where a table is too wide, the column with the lowest `spare` above zero is
    left out first.
    """

    heading: str
    right: bool = False
    spare: int = 0


def line_width(stream: Any) -> int | None:
    """Columns that a line may have: ``COLUMNS``, else those of the terminal; None where the stream is no terminal."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (AttributeError, OSError, ValueError):
        return None


def natural(text: str) -> list[Any]:
    """A sorting key in which numbers count as such: ``layers.2`` is before ``layers.10``."""
    return [int(part) if at % 2 else part for at, part in enumerate(re.split(r"([0-9]+)", text))]


def printable(text: object) -> str:
    """Text on one line, with U+FFFD for each character that would control what shows it: names come from files."""
    return _UNSHOWN.sub("\ufffd", str(text))


def finite(number: float | None) -> float | None:
    """The number, None where JSON has none for it."""
    return number if number is not None and math.isfinite(number) else None


def elide(name: str, width: int | None) -> str:
    """The name, or as much of its end as there is room for, with the last number of it: that of a layer."""
    name = printable(name)
    if width is None or len(name) <= width:
        return name
    numbers = list(re.finditer(r"[0-9]+(?=\.)", name))
    shown = "…"
    if numbers and numbers[-1].start() < len(name) - width + 1 and len(numbers[-1][0]) + 2 < width:
        shown = f"…{numbers[-1][0]}…"
    return shown + name[len(name) - max(width - len(shown), 0) :]


def wrap(text: str, width: int | None, indent: str = "") -> list[str]:
    """The lines of a sentence; all but the first are indented."""
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False) if width else [text]


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str | None]],
    notes: Sequence[str | None],
    width: int | None,
) -> list[str]:
    """The lines of a table.

    Columns without a value are left out, and a note that all rows have is said once, below the table. Where the lines
    would be too long, notes become numbers that are explained there, then columns that can be spared are left out and
    named, then the first column is elided.

    Parameters
    ----------
    columns : sequence of Column
        The first holds names.
    rows : sequence of sequence of str or None
        The cells; None is shown as a dash.
    notes : sequence of str or None
        What stands after each row.
    width : int or None
        The longest line that is allowed; None allows every length.
    """
    used = [at for at in range(len(columns)) if at == 0 or any(row[at] is not None for row in rows)]
    columns = [columns[at] for at in used]
    cells = [["–" if (cell := row[at]) is None else printable(cell) for at in used] for row in rows]
    said = [printable(note or "") for note in notes]
    if len(said) > 1 and said[0] and len(set(said)) == 1:
        return [*table(columns, rows, [None] * len(rows), width), *wrap(f"all: {said[0]}", width)]
    lines = _lines(columns, cells, said)
    if width is None or max(map(len, lines)) <= width:
        return lines
    numbers = {note: f"[{number}]" for number, note in enumerate(dict.fromkeys(filter(None, said)), 1)}
    marks = [numbers[note] if note else "" for note in said]
    longest = max(len(row[0]) for row in cells)
    left_out: list[str] = []
    while (room := width - _rest(columns, cells, marks)) < min(longest, _NAME) and any(c.spare for c in columns):
        at = min((at for at, column in enumerate(columns) if column.spare), key=lambda at: columns[at].spare)
        left_out.append(columns[at].heading)
        columns = [*columns[:at], *columns[at + 1 :]]
        cells = [[*row[:at], *row[at + 1 :]] for row in cells]
    lines = _lines(columns, [[elide(row[0], max(room, 1)), *row[1:]] for row in cells], marks)
    if left_out:
        lines += wrap(f"not shown: {', '.join(left_out)}; a wider terminal has room for more", width)
    return lines + [line for note, mark in numbers.items() for line in wrap(f"{mark} {note}", width, "    ")]


def _widths(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(columns[at].heading), *(len(row[at]) for row in cells), 0) for at in range(len(columns))]


def _rest(columns: Sequence[Column], cells: Sequence[Sequence[str]], marks: Sequence[str]) -> int:
    """How much of a line is not there for the first column."""
    longest = max(map(len, marks), default=0)
    return sum(width + 2 for width in _widths(columns, cells)[1:]) + (longest + 2 if longest else 0)


def _lines(columns: Sequence[Column], cells: Sequence[Sequence[str]], notes: Sequence[str]) -> list[str]:
    widths = _widths(columns, cells)
    lines = []
    for row, note in zip([[column.heading for column in columns], *cells], ["", *notes], strict=True):
        aligned = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for column, cell, width in zip(columns, row, widths, strict=True)
        ]
        lines.append("  ".join([*aligned, note]).rstrip())
    return lines
