"""Rows of one loaded model, edited until each of their cells waits to be served or has its end.

Which process does it is the engines' business: this one for all rows of a model, or a Ray worker for a few of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lm_eval_edit.sweep.design import Row
from lm_eval_edit.sweep.engine import collapsed_before, guarded
from lm_eval_edit.sweep.folder import COLLAPSED, Cell
from lm_eval_edit.sweep.prepared import ADAPTER, Prepared, WaitingRoom
from lm_eval_edit.sweep.preparing import PROBES, Preparer
from lm_eval_edit.sweep.worker import mark


def waiting(room: WaitingRoom, cell: Cell, no_adapters: str | None) -> Prepared | None:
    """A cell that waits for what can be had: a run elsewhere may have had adapters where this one has none.

    Args:
        no_adapters: Why no adapter can be served now; None where adapters can.
    """
    found = room.read(cell)
    return None if found is not None and found.kind == ADAPTER and no_adapters is not None else found


class EditedRows:
    """What one loaded model does for its cells.

    Args:
        preparer: The loaded model.
        done: Is told the status of each cell that will not be served.
    """

    def __init__(self, preparer: Preparer, done: Callable[[Cell, str], None]):
        self.preparer, self.checked, self.done = preparer, preparer.checked, done

    def waiting(self, cell: Cell) -> Prepared | None:
        """As `edited_rows.waiting`."""
        return waiting(self.preparer.room, cell, self.preparer.no_adapters)

    def without_edits(self, cell: Cell) -> None:
        """Let the unedited model's cell wait, or evaluate a row's own facts before its edits."""
        compute: Callable[[], str | None] = partial(self.preparer.before, cell)
        if cell.row is None:
            compute = partial(self._unedited, cell)
        self._guarded(cell, compute)

    def edit(self, row: Row, cells: Sequence[Cell]) -> None:
        """Edit a row to the checkpoints of these of its cells."""
        for schedule in self.checked.schedules[row.model.label, row.name]:
            mine = [cell for cell in cells if cell.n_edits in schedule.checkpoints]
            wanted = [cell.n_edits for cell in mine]
            for cell in mine:

                def compute(cell: Cell = cell, schedule: Any = schedule, wanted: list[int] = wanted) -> str | None:
                    if reason := self._collapsed_before(row, cell.n_edits):
                        mark(self.checked, cell, COLLAPSED, reason)
                        return COLLAPSED
                    reached = self.preparer.reach(row, schedule, cell.n_edits, wanted)
                    if reached.unreached is not None:
                        mark(self.checked, cell, COLLAPSED, reached.unreached)
                        return COLLAPSED
                    self.preparer.checkpoint(cell, schedule, reached)
                    return None

                self._guarded(cell, compute)
        self.preparer.worker.lm.restore()

    def _guarded(self, cell: Cell, compute: Callable[[], str | None]) -> None:
        status = guarded(self.checked, cell, compute)
        if status is not None:
            self.done(cell, status)

    def _unedited(self, cell: Cell) -> None:
        schedules = next(found for (label, _), found in self.checked.schedules.items() if label == cell.model)
        plan = schedules[0].plan
        facts = [fact for operation in plan.operations for fact in operation] if plan is not None else []
        self.preparer.unedited(cell, facts[:PROBES])

    def _collapsed_before(self, row: Row, n_edits: int) -> str | None:
        """As `engine.collapsed_before`, of cells that wait as well."""
        if reason := collapsed_before(self.checked, row, n_edits):
            return reason
        for cell in self.checked.edited(row) if not row.at_once else ():
            found = self.waiting(cell) if cell.n_edits < n_edits else None
            if found is not None and found.reached.collapsed:
                return found.reached.collapsed
        return None
