"""All rows of a sweep edited in this process and evaluated by vLLM: one engine a model, a LoRA adapter a checkpoint.

A model's rows are edited first (`preparing`), then it is freed, then the engine starts: the two are never on a device
together. What no adapter can say exactly is evaluated from a checkpoint, in an engine of its own. Cells are those of
the other engines; what is done is never done again, nor is what waits.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from tqdm.auto import tqdm

from lm_eval_edit.errors import CannotWriteError, in_one_line
from lm_eval_edit.export.commands import vllm_rank
from lm_eval_edit.harness import served
from lm_eval_edit.harness.left_over import end_left_over
from lm_eval_edit.sweep import serving
from lm_eval_edit.sweep.checking import Checked, loading_args
from lm_eval_edit.sweep.design import Model, Row
from lm_eval_edit.sweep.engine import Outcome, claimed, collapsed_before, guarded, missing
from lm_eval_edit.sweep.evaluation import Evaluator, Manner
from lm_eval_edit.sweep.folder import COLLAPSED, DONE, FAILED, Cell
from lm_eval_edit.sweep.prepared import ADAPTER, BASE, CHECKPOINT, Prepared, WaitingRoom
from lm_eval_edit.sweep.preparing import PROBES, Preparer
from lm_eval_edit.sweep.serving import Serving
from lm_eval_edit.sweep.worker import cell_record, mark

logger = logging.getLogger("lm_eval_edit")


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
    started = time.perf_counter()
    with claimed(checked):
        todo = missing(checked)
        outcome = Outcome(kept=len(checked.cells()) - len(todo))
        room = WaitingRoom(checked.folder)
        if count := end_left_over(room.root):
            logger.warning("%d processes of vLLM, left by a run of this sweep that was killed, are ended", count)
        for cell in checked.cells():
            if cell not in todo:  # computed since by another engine, or by a run killed before it had cleared up
                room.leave(cell)
        room.tidy()
        with tqdm(total=len(todo), desc="cells", unit="cell", disable=not progress or not todo) as bar:
            for model in checked.design.models:
                cells = [cell for cell in todo if cell.model == model.label]
                if cells:
                    _Run(checked, model, how, room, outcome, bar).run(cells)
        room.tidy()
    outcome.seconds = time.perf_counter() - started
    return outcome


class _Run:
    """One model of one run."""

    def __init__(self, checked: Checked, model: Model, how: Serving, room: WaitingRoom, outcome: Outcome, bar: tqdm):
        self.checked, self.model, self.how, self.room, self.outcome, self.bar = checked, model, how, room, outcome, bar
        self.evaluator: Evaluator | None = None
        self.no_adapters = serving.no_adapters(checked, model)

    def run(self, cells: list[Cell]) -> None:
        """Compute these cells."""
        open_cells = self._prepare(cells)
        _free()  # the model that was edited is held in cycles, and the engine wants the device for itself
        waiting = [found for cell in open_cells if (found := self._waiting(cell)) is not None]
        together = [each for each in waiting if each.kind in (BASE, ADAPTER)]
        if together:
            self._serve(together, serving.pretrained(self.checked, self.model), _adapters(together))
        for each in waiting:
            if each.kind == CHECKPOINT:
                self._serve([each], str(each.weights), None)

    def _waiting(self, cell: Cell) -> Prepared | None:
        """A cell that waits for what can be had here: a run elsewhere may have had adapters where this one has none."""
        found = self.room.read(cell)
        return None if found is not None and found.kind == ADAPTER and self.no_adapters is not None else found

    def _done(self, cell: Cell, status: str) -> None:
        self.outcome.statuses[cell.path] = status
        self.bar.update()

    # -------------------------------------------------------------------------------------------------------- editing

    def _prepare(self, cells: list[Cell]) -> list[Cell]:
        """Edit what does not wait yet. Returns the cells that are to be served."""
        lacking = [cell for cell in cells if self._waiting(cell) is None]
        if not lacking:
            return cells
        self.bar.set_postfix_str(f"loading {self.model.label}")
        try:
            preparer = Preparer(self.checked, self.model, self.how.device, self.room, self.no_adapters)
        except Exception as error:
            logger.exception("model %s could not be loaded", self.model.label)
            for cell in lacking:
                mark(self.checked, cell, FAILED, in_one_line(error))
                self._done(cell, FAILED)
            return [cell for cell in cells if cell not in lacking]
        self.outcome.loads += 1
        ended: list[Cell] = []
        for cell in lacking:
            status = None
            if cell.row is None:
                self.bar.set_postfix_str(f"{self.model.label} unedited")
                status = guarded(self.checked, cell, partial(self._unedited, preparer, cell))
            elif cell.n_edits == 0:
                status = guarded(self.checked, cell, partial(preparer.before, cell))
            if status is not None:
                self._done(cell, status)
                ended.append(cell)
        rows = list(dict.fromkeys(cell.row.name for cell in lacking if cell.row is not None and cell.n_edits))
        for number, name in enumerate(rows, start=1):
            self.bar.set_postfix_str(f"editing row {number}/{len(rows)} {name}")
            row = next(row for row in self.checked.rows if (row.model, row.name) == (self.model, name))
            ended += self._edit_row(preparer, row, [cell for cell in lacking if cell.row == row and cell.n_edits])
        return [cell for cell in cells if cell not in ended]

    def _unedited(self, preparer: Preparer, cell: Cell) -> None:
        schedules = next(found for (label, _), found in self.checked.schedules.items() if label == self.model.label)
        plan = schedules[0].plan
        facts = [fact for operation in plan.operations for fact in operation] if plan is not None else []
        preparer.unedited(cell, facts[:PROBES])

    def _edit_row(self, preparer: Preparer, row: Row, cells: list[Cell]) -> list[Cell]:
        """Edit a row to the checkpoints of these cells. Returns those that are not to be served."""
        ended = []
        for schedule in self.checked.schedules[row.model.label, row.name]:
            mine = [cell for cell in cells if cell.n_edits in schedule.checkpoints]
            wanted = [cell.n_edits for cell in mine]
            for cell in mine:

                def compute(cell: Cell = cell, schedule: Any = schedule, wanted: list[int] = wanted) -> str | None:
                    if reason := self._collapsed_before(row, cell.n_edits):
                        mark(self.checked, cell, COLLAPSED, reason)
                        return COLLAPSED
                    reached = preparer.reach(row, schedule, cell.n_edits, wanted)
                    if reached.unreached is not None:
                        mark(self.checked, cell, COLLAPSED, reached.unreached)
                        return COLLAPSED
                    preparer.checkpoint(cell, schedule, reached)
                    return None

                status = guarded(self.checked, cell, compute)
                if status is not None:
                    self._done(cell, status)
                    ended.append(cell)
        preparer.worker.lm.restore()
        return ended

    def _collapsed_before(self, row: Row, n_edits: int) -> str | None:
        """As `engine.collapsed_before`, of cells that wait as well."""
        if reason := collapsed_before(self.checked, row, n_edits):
            return reason
        for cell in self.checked.edited(row) if not row.at_once else ():
            if cell.n_edits < n_edits and (found := self._waiting(cell)) is not None and found.reached.collapsed:
                return found.reached.collapsed
        return None

    # -------------------------------------------------------------------------------------------------------- serving

    def _serve(self, cells: list[Prepared], pretrained: str, adapters: served.Adapters | None) -> None:
        """Evaluate cells that wait in one engine."""
        self.bar.set_postfix_str(f"starting vLLM for {self.model.label}")
        try:
            with self._engine(pretrained, cells[0].dtype, adapters) as lm:
                for each in cells:
                    self.bar.set_postfix_str(each.cell.path)
                    status = guarded(self.checked, each.cell, partial(self._evaluate, lm, each))
                    assert status is not None, "an evaluated cell has a status"
                    # What failed of the tasks asked while editing is asked again, so the edits are made again for it.
                    if status == DONE or (each.record.get("evaluated") or {}).get("failed"):
                        self.room.leave(each.cell)
                    self._done(each.cell, status)
        except CannotWriteError:
            raise
        except Exception as error:
            logger.exception("vLLM for %s could not be used", pretrained)
            for each in cells:
                if each.cell.path not in self.outcome.statuses:
                    mark(self.checked, each.cell, FAILED, f"vLLM: {in_one_line(error)}")
                    self._done(each.cell, FAILED)

    @contextmanager
    def _engine(self, pretrained: str, dtype: str, adapters: served.Adapters | None) -> Iterator[Any]:
        options = serving.model_options(self.checked, self.model, at_home=pretrained)
        lm = served.start(pretrained, dtype, options, self.how.arguments, adapters, self.room.root)
        try:
            self.outcome.loads += 1
            yield lm
        finally:
            served.stop(lm, self.room.root)
            _free()

    def _evaluate(self, lm: Any, each: Prepared) -> str:
        """Evaluate one cell, store it. Returns its status."""
        started, record, reached = time.perf_counter(), each.record, each.reached
        engine = self.how.record(each)
        adapter = str(each.weights) if each.kind == ADAPTER else None
        lm.serve(served.Served(each.cell.path, record["fingerprint"], adapter, each.kind != BASE, record["info"]))
        engine["check"] = serving.check_answers(lm, each)
        lm.describe_engine(engine)
        evaluator = self._evaluator(lm)
        found = serving.joined(evaluator.run(record["args"], general=True), record.get("evaluated"))
        seconds = time.perf_counter() - started + record.get("seconds", 0.0)
        content = cell_record(found, reached, record["fingerprint"], seconds) | {"engine": engine}
        self.checked.folder.write(each.cell, content, found.results, found.samples)
        return str(content["status"])

    def _evaluator(self, lm: Any) -> Evaluator:
        """The tasks and requests of this model's cells, made once for all its engines."""
        design = self.checked.design
        if self.evaluator is None:
            self.evaluator = Evaluator(
                lm,
                self.checked.general,
                (),
                loading_args(design, self.model),
                limit=design.limit,
                include_path=design.include_path,
                batch_size=design.batch_size,
                log_samples=design.log_samples,
                manner=Manner(design.num_fewshot, design.apply_chat_template, design.fewshot_as_multiturn),
                model_type="vllm",
            )
        elif self.evaluator.lm is not lm:
            self.evaluator.take(lm)
        return self.evaluator


def _adapters(cells: list[Prepared]) -> served.Adapters | None:
    """What an engine needs for the adapters among these cells."""
    records: list[Mapping[str, Any]] = [each.record for each in cells if each.kind == ADAPTER]
    if not records:
        return None
    rank = vllm_rank(max(record["rank"] for record in records))
    assert rank is not None, "a higher rank waits as a checkpoint"
    return served.Adapters(rank, tuple(sorted({name for record in records for name in record["modules"]})))


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
