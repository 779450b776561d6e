"""The tables of a report: one for each model with every figure, and the damage budgets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from lm_eval_edit.comparison.verdicts import Row
from lm_eval_edit.report.budget import MEAN, WORST, Held, held
from lm_eval_edit.report.comparing import Compared
from lm_eval_edit.sweep.reading import COLLAPSED, RowData, Sweep, by_series


@dataclass(frozen=True)
class Short:
    """How the rows that differ only by their edit seed end.

    Attributes:
        n_edits: The last checkpoint at which any of them has a mean; 0 without one.
        ends: The means there, one for each seed that came so far.
        collapsed: The first collapsed checkpoint of each row that collapsed.
    """

    row: RowData
    seeds: int
    n_edits: int
    ends: tuple[Row, ...]
    collapsed: tuple[int, ...]


@dataclass(frozen=True)
class ModelTable:
    """The summary of one model.

    Attributes:
        short: A line for each method.
        mean, heads: The unedited model's mean and headline metrics; None and empty before any cell is compared.
        rows: Every row of edits with its cells.
    """

    model: str
    tasks: tuple[str, ...]
    mean: Row | None
    heads: dict[str, Row]
    short: tuple[Short, ...]
    rows: tuple[tuple[RowData, tuple[Compared, ...]], ...]


def by_row(compared: Sequence[Compared]) -> list[tuple[Compared, ...]]:
    """The cells of each row."""
    return [tuple(cells) for _, cells in itertools.groupby(compared, key=lambda each: (each.row.model, each.row.name))]


def model_tables(compared: Sequence[Compared]) -> list[ModelTable]:
    """A summary for each model."""
    tables = []
    for model, group in itertools.groupby(compared, key=lambda each: each.row.model):
        cells = list(group)
        whole = next((each for each in cells if each.whole), None)
        rows = tuple((each[0].row, each) for each in by_row(cells))
        some = whole or next((each for each in cells if each.comparison), None)
        mean, heads = whole.mean if whole else None, some.headlines if some else {}
        short = tuple(_short(each, cells) for each in by_series(row for row, _ in rows))
        tables.append(ModelTable(model, cells[0].tasks, mean, heads, short, rows))
    return tables


def _short(rows: Sequence[RowData], compared: Sequence[Compared]) -> Short:
    cells = [[each for each in compared if each.row is row] for row in rows]
    n_edits = max((each.cell.n_edits for each in itertools.chain(*cells) if each.mean), default=0)
    ends = tuple(each.mean for each in itertools.chain(*cells) if each.mean and each.cell.n_edits == n_edits)
    gone = [[each.cell.n_edits for each in row if each.cell.status == COLLAPSED] for row in cells]
    return Short(rows[0], len(rows), n_edits, ends, tuple(row[0] for row in gone if row))


def budgets(
    sweep: Sweep, compared: Sequence[Compared], deltas: Sequence[float]
) -> list[tuple[RowData, int, dict[str, list[Held]]]]:
    """(a row, how many seeds, scope -> the budget for each δ) of the rows that differ only by their edit seed."""
    found = []
    for rows in by_series(sweep.rows):
        cells = [[each for each in compared if each.row is row] for row in rows]
        scopes = {scope: [held(cells, scope, delta) for delta in deltas] for scope in (MEAN, WORST)}
        found.append((rows[0], len(rows), scopes))
    return found
