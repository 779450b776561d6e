"""All rows of a sweep in this process: what is there is kept, what is missing is computed, each model loaded once.

Each model is loaded once, when the first of its cells is missing. Within a row the model is edited to a checkpoint,
evaluated, edited on; a row that was stopped replays its ledger first, so every checkpoint carries all earlier edits.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from tqdm.auto import tqdm

from lm_eval_edit._support.files import read_json
from lm_eval_edit.errors import CannotWriteError, in_one_line
from lm_eval_edit.harness.engines import TRANSFORMERS
from lm_eval_edit.sweep.checking import Checked, Schedule
from lm_eval_edit.sweep.design import Model, Row
from lm_eval_edit.sweep.folder import COLLAPSED, DONE, FAILED, Cell
from lm_eval_edit.sweep.worker import Worker, mark

logger = logging.getLogger("lm_eval_edit")

Status = TypeVar("Status")


class EngineLostError(Exception):
    """What was to evaluate a cell answers nobody any more: no fault of the cell, which another engine may evaluate."""


@dataclass
class Outcome:
    """What a run did.

    Attributes:
        kept: Cells that were there.
        statuses: Path of a computed cell -> its status.
        loads: Models loaded.
        seconds: In all.
        shared: What each model's evaluations shared, as lines.
    """

    kept: int = 0
    statuses: dict[str, str] = field(default_factory=dict)
    loads: int = 0
    seconds: float = 0.0
    shared: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """Cells that could not be computed, whole or in part."""
        return [path for path, status in self.statuses.items() if status == FAILED]


@contextmanager
def claimed(checked: Checked) -> Iterator[None]:
    """Make the folder this sweep's, and keep others out of it meanwhile."""
    with checked.folder.lock():
        checked.folder.claim(checked.design, checked.rows, checked.about_schedule, about_model=bool(checked.general))
        yield


def missing(checked: Checked) -> list[Cell]:
    """The cells to compute; damaged ones are told."""
    found = []
    for cell in checked.cells():
        status, why = checked.folder.state(cell)
        if status in (DONE, COLLAPSED):
            continue
        if status is None and why is not None:
            logger.warning("%s: %s; it is computed again", cell.path, why)
        found.append(cell)
    return found


@contextmanager
def begun(checked: Checked) -> Iterator[tuple[list[Cell], Outcome]]:
    """A run of a sweep, its folder claimed: the cells to compute, and what is told of them, the seconds in the end.

    Raises:
        UserError: another process writes this folder.
        CannotWriteError: the folder cannot be written.
    """
    started = time.perf_counter()
    with claimed(checked):
        todo = missing(checked)
        outcome = Outcome(kept=len(checked.cells()) - len(todo))
        yield todo, outcome
    outcome.seconds = time.perf_counter() - started


def mixed(checked: Checked, name: str) -> list[str]:
    """What to say of cells that are there and that another engine has evaluated.

    Args:
        name: The engine that will compute what is missing, as `harness.engines` names it.
    """
    others: dict[str, int] = {}
    for cell in checked.cells():
        if checked.folder.state(cell)[0] == DONE:
            # Cells of earlier versions do not say: there was no other engine then.
            engine = read_json(checked.folder.path(cell) / "cell.json").get("engine") or {}
            found = engine.get("name") or TRANSFORMERS
            if found != name and not (cell.row is not None and cell.n_edits == 0):
                others[found] = others.get(found, 0) + 1
    return [
        f"{count} of the cells that are there were evaluated by {other}, those to come by {name}: `compare` and "
        f"`report` warn where the two are held against each other; a folder of its own would keep them apart"
        for other, count in others.items()
    ]


def collapsed_before(checked: Checked, row: Row, n_edits: int) -> str | None:
    """Why a row had collapsed at an earlier checkpoint that is stored; None if it had not, or cells share no edits."""
    if row.at_once:
        return None
    for cell in checked.edited(row):
        if cell.n_edits >= n_edits:
            break
        status, reason = checked.folder.state(cell)
        if status == COLLAPSED:
            return reason
        if status in (DONE, FAILED):
            reason = read_json(checked.folder.path(cell) / "cell.json").get("collapsed")
            if reason:
                return reason
    return None


def run_sweep(
    checked: Checked, *, device: str | None = None, progress: bool = True, share_blocks: float | None = None
) -> Outcome:
    """Compute every missing cell, in this process.

    Args:
        device: As `--device`; None for HFLM's default.
        progress: Show rows, cells and the time left.
        share_blocks: As `Worker` takes it.

    Returns:
        What was done. A cell that fails is stored as failed, with the reason, and the others go on.

    Raises:
        UserError: another process writes this folder.
        CannotWriteError: the folder cannot be written.
    """
    with begun(checked) as (todo, outcome):
        _run(checked, todo, outcome, device, progress, share_blocks)
    return outcome


def _run(
    checked: Checked,
    todo: list[Cell],
    outcome: Outcome,
    device: str | None,
    progress: bool,
    share_blocks: float | None,
) -> None:
    with tqdm(total=len(todo), desc="cells", unit="cell", disable=not progress or not todo) as bar:

        def done(cell: Cell, status: str) -> None:
            outcome.statuses[cell.path] = status
            bar.update()

        for model in checked.design.models:
            cells = [cell for cell in todo if cell.model == model.label]
            if cells:
                bar.set_postfix_str(f"loading {model.label}")
                load = partial(Worker, checked, model, device, share_blocks)
                _run_model(checked, model, cells, load, done, bar.set_postfix_str, outcome)


def _run_model(
    checked: Checked,
    model: Model,
    cells: list[Cell],
    load: Callable[[], Worker],
    done: Callable[[Cell, str], None],
    say: Callable[[str], None],
    outcome: Outcome,
) -> None:
    gc.collect()  # the model before this one is held in cycles, and would keep its memory while this one is loaded
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        worker = load()
    except Exception as error:
        logger.exception("model %s could not be loaded", model.label)
        for cell in cells:
            mark(checked, cell, FAILED, in_one_line(error))
            done(cell, FAILED)
        return
    outcome.loads += 1
    for cell in cells:
        if cell.row is None:
            say(f"{model.label} unedited")
            done(cell, guarded(checked, cell, partial(worker.evaluate_unedited, cell)))
    rows = [row for row in checked.rows if row.model == model and any(cell.row == row for cell in cells)]
    for number, row in enumerate(rows, start=1):
        say(f"row {number}/{len(rows)} {row.name}")
        _run_row(worker, row, [cell for cell in cells if cell.row == row], done)
    if worker.sharing is not None and (line := worker.sharing.told()):
        outcome.shared.append(line)


def _run_row(worker: Worker, row: Row, cells: list[Cell], done: Callable[[Cell, str], None]) -> None:
    checked = worker.checked
    schedules = checked.schedules[row.model.label, row.name]
    for cell in cells:
        if cell.n_edits == 0:
            done(cell, guarded(checked, cell, partial(worker.evaluate_unedited, cell)))
    for schedule in schedules:
        for cell in [cell for cell in cells if cell.n_edits in schedule.checkpoints]:

            def compute(cell: Cell = cell, schedule: Schedule = schedule) -> str:
                if reason := collapsed_before(checked, row, cell.n_edits):
                    return worker.mark(cell, COLLAPSED, reason)
                reached = worker.edit_to(row, schedule, cell.n_edits)
                if reached.unreached is not None:
                    return worker.mark(cell, COLLAPSED, reached.unreached)
                return worker.evaluate(cell, reached)

            done(cell, guarded(checked, cell, compute))
    worker.lm.restore()


def guarded(checked: Checked, cell: Cell, compute: Callable[[], Status]) -> Status | str:
    """What `compute` returns, a cell's status; a cell that fails is stored so and costs no other.

    Raises:
        CannotWriteError: nothing that follows could be kept.
        EngineLostError: nothing is stored.
    """
    try:
        return compute()
    except (CannotWriteError, EngineLostError):
        raise
    except Exception as error:
        logger.exception("%s failed", cell.path)
        mark(checked, cell, FAILED, in_one_line(error))
        return FAILED
