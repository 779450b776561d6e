"""Text for a terminal: names in one column, what they are in the next, wrapped to the window."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

WIDEST = 120


def columns(rows: Iterable[Sequence[str]], indent: int = 0) -> list[str]:
    """Lay out rows of cells; the last cell of each row is wrapped, below itself, to the width of the terminal.

    Args:
        rows: Each of the same number of cells. Line breaks in a last cell are kept.
        indent: Spaces before every row.
    """
    rows = [tuple(row) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)][:-1]
    start = indent + sum(width + 2 for width in widths)
    room = max(min(shutil.get_terminal_size().columns, WIDEST) - start, 30)
    lines = []
    for *cells, last in rows:
        head = " " * indent + "".join(f"{cell:<{width}}  " for cell, width in zip(cells, widths, strict=True))
        whole: dict[str, Any] = {"break_on_hyphens": False, "break_long_words": False}  # paths and names stay copyable
        wrapped = [part for line in last.split("\n") for part in textwrap.wrap(line, room, **whole) or [""]]
        lines += [(head + wrapped[0]).rstrip(), *(" " * start + part for part in wrapped[1:])]
    return lines


def paragraph(text: str) -> list[str]:
    """One paragraph, wrapped to the width of the terminal."""
    return columns([(text,)])
