"""All rows of a sweep edited in this process and evaluated by vLLM: one engine a model, a LoRA adapter a checkpoint.

A model's rows are edited first (`preparing`), then it is freed, then the engine starts: the two are never on a device
together. What no adapter can say exactly is evaluated from a checkpoint, in an engine of its own. Cells are those of
the other engines; what is done is never done again, nor is what waits.
"""

from __future__ import annotations

import logging

from tqdm.auto import tqdm

from lm_eval_edit.errors import CannotWriteError, in_one_line
from lm_eval_edit.harness.left_over import end_all_left_over, end_left_over
from lm_eval_edit.harness.served import Adapters
from lm_eval_edit.sweep import serving
from lm_eval_edit.sweep.checking import Checked
from lm_eval_edit.sweep.design import Model
from lm_eval_edit.sweep.edited_rows import EditedRows, waiting
from lm_eval_edit.sweep.engine import EngineLostError, Outcome, begun
from lm_eval_edit.sweep.folder import FAILED, Cell
from lm_eval_edit.sweep.prepared import ADAPTER, BASE, CHECKPOINT, Prepared, WaitingRoom
from lm_eval_edit.sweep.preparing import Preparer
from lm_eval_edit.sweep.served_cells import Server, adapters_of, free
from lm_eval_edit.sweep.serving import Serving
from lm_eval_edit.sweep.worker import mark

logger = logging.getLogger("lm_eval_edit")

TRIES = 2  # engines that one cell may cost


def run_sweep(checked: Checked, how: Serving, *, progress: bool = True) -> Outcome:
    """Compute every missing cell.

    Args:
        how: The engine's arguments, and the device that edits are made on.
        progress: Show cells and the time left.

    Returns:
        What was done; `loads` counts the models loaded for editing and the engines.

    Raises:
        UserError: another process writes this folder.
        CannotWriteError: the folder cannot be written.
    """
    with begun(checked) as (todo, outcome):
        room = WaitingRoom(checked.folder)
        if count := end_left_over(room.root) + end_all_left_over(room.engines):
            logger.warning("%d processes of vLLM, left by a run of this sweep that was killed, are ended", count)
        room.begin(checked.cells(), todo)
        with tqdm(total=len(todo), desc="cells", unit="cell", disable=not progress or not todo) as bar:
            for model in checked.design.models:
                cells = [cell for cell in todo if cell.model == model.label]
                if cells:
                    _Run(checked, model, how, room, outcome, bar).run(cells)
        room.tidy()
    return outcome


class _Run:
    """One model of one run."""

    def __init__(self, checked: Checked, model: Model, how: Serving, room: WaitingRoom, outcome: Outcome, bar: tqdm):
        self.checked, self.model, self.how, self.room, self.outcome, self.bar = checked, model, how, room, outcome, bar
        self.no_adapters = serving.no_adapters(checked, model)
        self.server = Server(checked, model, how, room, room.root)

    def run(self, cells: list[Cell]) -> None:
        """Compute these cells."""
        self._prepare(cells)
        free()  # the model that was edited is held in cycles, and the engine wants the device for itself
        open_cells = [cell for cell in cells if cell.path not in self.outcome.statuses]
        wait = [found for cell in open_cells if (found := waiting(self.room, cell, self.no_adapters)) is not None]
        together = [each for each in wait if each.kind in (BASE, ADAPTER)]
        if together:
            self._serve(together, serving.pretrained(self.checked, self.model))
        for each in wait:
            if each.kind == CHECKPOINT:
                self._serve([each], str(each.weights))

    def _done(self, cell: Cell, status: str) -> None:
        self.outcome.statuses[cell.path] = status
        self.bar.update()

    def _prepare(self, cells: list[Cell]) -> None:
        """Edit what does not wait yet."""
        lacking = [cell for cell in cells if waiting(self.room, cell, self.no_adapters) is None]
        if not lacking:
            return
        self.bar.set_postfix_str(f"loading {self.model.label}")
        try:
            preparer = Preparer(self.checked, self.model, self.how.device, self.room, self.no_adapters)
        except Exception as error:
            logger.exception("model %s could not be loaded", self.model.label)
            for cell in lacking:
                mark(self.checked, cell, FAILED, in_one_line(error))
                self._done(cell, FAILED)
            return
        self.outcome.loads += 1
        edited = EditedRows(preparer, self._done)
        for cell in lacking:
            if cell.n_edits == 0:
                self.bar.set_postfix_str(f"{self.model.label} unedited")
                edited.without_edits(cell)
        rows = list(dict.fromkeys(cell.row.name for cell in lacking if cell.row is not None and cell.n_edits))
        for number, name in enumerate(rows, start=1):
            self.bar.set_postfix_str(f"editing row {number}/{len(rows)} {name}")
            row = next(row for row in self.checked.rows if (row.model, row.name) == (self.model, name))
            edited.edit(row, [cell for cell in lacking if cell.row == row and cell.n_edits])

    def _serve(self, cells: list[Prepared], pretrained: str) -> None:
        """Evaluate cells that wait in one engine."""
        adapters = adapters_of(cells)
        try:
            try:
                for each in cells:
                    self._done(each.cell, self._evaluate(each, pretrained, adapters))
            finally:
                self.server.stop()
        except CannotWriteError:
            raise
        except Exception as error:
            logger.exception("vLLM for %s could not be used", pretrained)
            for each in cells:
                if each.cell.path not in self.outcome.statuses:
                    mark(self.checked, each.cell, FAILED, f"vLLM: {in_one_line(error)}")
                    self._done(each.cell, FAILED)

    def _evaluate(self, each: Prepared, pretrained: str, adapters: Adapters | None) -> str:
        """The status of a cell; where the engine is lost meanwhile, another one has a try and serves what follows."""
        lost = ""
        for _ in range(TRIES):
            if self.server.lm is None:
                self.bar.set_postfix_str(f"starting vLLM for {self.model.label}")
                self.server.start(pretrained, each.dtype, adapters)
                self.outcome.loads += 1
            self.bar.set_postfix_str(each.cell.path)
            try:
                return self.server.serve(each)
            except EngineLostError as error:
                lost = str(error)
                logger.warning("%s: %s", each.cell.path, lost)
                self.server.stop()
        mark(self.checked, each.cell, FAILED, lost)
        return FAILED
