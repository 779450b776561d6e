"""Edit quality beside the damage: what the tasks about a row's own facts say before and after its edits."""

from __future__ import annotations

from dataclasses import dataclass

from lm_eval_edit.sweep.reading import CellData, RowData, Sweep, Value


@dataclass(frozen=True)
class Quality:
    """The tasks about its own facts of one row.

    Attributes:
        names: (task, metric) of each column.
        lines: (edits, a value for each column), the unedited model first.
    """

    row: RowData
    names: tuple[tuple[str, str], ...]
    lines: tuple[tuple[int, tuple[Value | None, ...]], ...]


def quality(sweep: Sweep) -> list[Quality]:
    """An entry for each row that was asked about its own facts."""
    found = []
    for row in sweep.rows:
        if row.before is None or not row.before.tasks():
            continue
        names = tuple((task, metric) for task in row.before.tasks() for metric in row.before.metrics(task))
        cells: list[CellData] = [row.before, *(cell for cell in row.cells if cell.results)]
        lines = tuple((cell.n_edits, tuple(cell.value(*name) for name in names)) for cell in cells)
        found.append(Quality(row, names, lines))
    return found
