"""The damage budget: how many edits a model takes before it has lost more than can be tolerated.

A budget is the largest checkpoint up to which, itself included, no checkpoint of the row drops by more than δ. That a
score recovers at a later checkpoint does not give the edits between back. A collapsed cell has dropped beyond any δ,
and so has a task whose figure is no finite number any more; a cell that was not measured ends the count, for nothing
is known from there on. Tasks that the unedited model cannot do (`floors`) have nothing to lose and do not count; nor do
tasks about the edits themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lm_eval_edit.comparison.verdicts import Row
from lm_eval_edit.report.comparing import Compared
from lm_eval_edit.sweep.reading import COLLAPSED

DELTAS = (0.01, 0.02, 0.05, 0.1)
_ROUND_OFF = 1e-9  # 5 of 100 documents are a drop of 0.05, though 1 - 0.95 is a little more
MEAN, WORST = "mean of tasks", "worst task"


@dataclass(frozen=True)
class Budget:
    """One row's budget for one δ.

    Attributes:
        n_edits: The largest checkpoint within δ; 0 where the first is beyond it.
        beyond: The first checkpoint beyond δ; None where none was seen.
        unknown: The checkpoint that ended the count because it has no figure; None where none did.
    """

    n_edits: int
    beyond: int | None = None
    unknown: int | None = None

    def __str__(self) -> str:
        if self.beyond is not None:
            return str(self.n_edits) if self.n_edits else f"< {self.beyond}"
        return f"≥ {self.n_edits}" if self.n_edits else "–"


def budget(drops: Sequence[tuple[int, float | None]], delta: float) -> Budget:
    """The budget of one row.

    Args:
        drops: (edits, drop) of its checkpoints, ascending; infinite for a collapsed cell, None without a figure.
        delta: The drop that is tolerated.
    """
    n_edits = 0
    for n, drop in drops:
        if drop is None:
            return Budget(n_edits, unknown=n)
        if drop > delta + _ROUND_OFF:
            return Budget(n_edits, beyond=n)
        n_edits = n
    return Budget(n_edits)


def drops(cells: Sequence[Compared], scope: str, *, certain: bool) -> list[tuple[int, float | None]]:
    """(edits, drop) of one row's cells.

    Args:
        scope: `MEAN`, or `WORST` for the largest drop of any task.
        certain: The largest drop within the interval instead of the drop itself.
    """
    size: Callable[[Row], float] = (lambda row: -row.gain.low) if certain else (lambda row: -row.gain.value)
    found: list[tuple[int, float | None]] = []
    for each in cells:
        drop: float | None
        if each.cell.status == COLLAPSED or (scope == WORST and each.broken):
            drop = math.inf
        elif scope == MEAN:
            drop = None if (mean := each.able_mean) is None else size(mean)
        else:
            drop = max(map(size, each.able.values())) if each.whole and each.able else None
        found.append((each.cell.n_edits, drop))
    return found


@dataclass(frozen=True)
class Held:
    """The budgets of the rows that differ only by their edit seed.

    Attributes:
        seen: By the drops themselves, one budget for each seed.
        certain: By the largest drops within the intervals.
    """

    seen: tuple[Budget, ...]
    certain: tuple[Budget, ...]


def held(rows: Sequence[Sequence[Compared]], scope: str, delta: float) -> Held:
    """The budgets of several rows, each given as its cells."""
    return Held(*(tuple(budget(drops(cells, scope, certain=sure), delta) for cells in rows) for sure in (False, True)))


def words(budgets: Sequence[Budget]) -> str:
    """Budgets of several seeds as one entry of a table: the smallest and, if it differs, the largest."""
    ordered = sorted(budgets, key=lambda each: (each.n_edits, each.beyond is None))
    low, high = ordered[0], ordered[-1]
    return str(low) if low.n_edits == high.n_edits else f"{low} to {high}"
