"""What a Ray worker does for a sweep: edit a schedule, evaluate a cell. `ray_engine` hands these out.

A worker process holds one loaded model, for all tasks that it is given of that model. Nothing but small values travels:
edits lie in the ledgers of the sweep's folder, figures in its cells, and the design is checked anew where it is used.
"""

from __future__ import annotations

import gc
import os
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lm_eval_edit.errors import CannotWriteError, in_one_line
from lm_eval_edit.sweep import checking
from lm_eval_edit.sweep.design import Design, Model, Row
from lm_eval_edit.sweep.folder import COLLAPSED, Cell, SweepFolder
from lm_eval_edit.sweep.worker import Checkpoint, Worker


@dataclass(frozen=True)
class Job:
    """What every task of one run of a sweep has in common.

    Attributes:
        run: Names the run; what a worker holds of another one is not used.
        folder: The sweep's folder, absolute: every node must see it there.
        cwd: The driver's working directory; relative paths in the design are relative to it.
        device: As HFLM takes it.
        threads: Of torch on the CPU: sums are split by threads, and so are their last bits.
    """

    run: str
    design: Design
    folder: str
    cwd: str
    device: str
    threads: int


@dataclass(frozen=True)
class Answer:
    """What a task gives back.

    Attributes:
        value: Its result; None if it failed.
        loads: Models loaded for it.
        error: Why it failed, in one line.
        details: The same with the traceback.
        fatal: Nothing that follows could be kept either: the folder cannot be written.
    """

    value: Any = None
    loads: int = 0
    error: str | None = None
    details: str = ""
    fatal: bool = False


_job: str | None = None
_checked: checking.Checked | None = None
_label: str | None = None
_worker: Any = None  # of one kind in a run


def edit(job: Job, label: str, row_name: str, counts: tuple[int, ...], wanted: list[int]) -> Answer:
    """Bring a model through the wanted checkpoints of a schedule; its edits are then in its ledger.

    Returns:
        (n_edits, `Checkpoint` or error) for each in turn, up to the first at which the model has collapsed.
    """

    def through(worker: Worker) -> list[tuple[int, Checkpoint | str]]:
        row, schedule = _find(worker, row_name, counts)
        reached: list[tuple[int, Checkpoint | str]] = []
        for n_edits in wanted:
            try:
                checkpoint = worker.edit_to(row, schedule, n_edits)
            except CannotWriteError:
                raise
            except Exception as error:
                reached.append((n_edits, in_one_line(error)))
                continue
            reached.append((n_edits, checkpoint))
            if checkpoint.collapsed:
                break
        worker.lm.restore()
        return reached

    return answer(job, label, through)


def evaluate(job: Job, cell: Cell, counts: tuple[int, ...] | None = None, reached: Checkpoint | None = None) -> Answer:
    """Evaluate a cell and store it: unedited, or at a checkpoint that `edit` has reached. Returns its status."""

    def compute(worker: Worker) -> str:
        if reached is None:
            return worker.evaluate_unedited(cell)
        assert cell.row is not None and counts is not None, "what `edit` reached is a checkpoint of a row's schedule"
        row, schedule = _find(worker, cell.row.name, counts)
        now = worker.edit_to(row, schedule, cell.n_edits)
        if now.unreached is not None:  # finite where the edits were made, not in this worker's arithmetic
            return worker.mark(cell, COLLAPSED, now.unreached)
        return worker.evaluate(cell, reached)

    return answer(job, cell.model, compute)


def answer(
    job: Job, label: str, compute: Callable[[Any], Any], make: Callable[[checking.Checked, Model, str], Any] = Worker
) -> Answer:
    """What comes of asking the loaded model of this process, which is loaded if it is not.

    Args:
        label: The model's.
        compute: What is asked of it.
        make: Loads it; one and the same in all tasks of a run.
    """
    loads = 0
    try:
        worker = _worker if (_job, _label) == (job.run, label) else None
        if worker is None:
            worker = _load(job, label, make)
            loads = 1
        return Answer(compute(worker), loads)
    except Exception as error:
        return failed(error, loads)


def failed(error: Exception, loads: int = 0) -> Answer:
    """What a task that failed gives back."""
    return Answer(None, loads, in_one_line(error), traceback.format_exc(), isinstance(error, CannotWriteError))


def release() -> None:
    """Let go of the model that this process holds."""
    global _label, _worker
    _label = _worker = None
    gc.collect()  # a model held in cycles would keep its memory while the next one is loaded


def checked_here(job: Job) -> checking.Checked:
    """The sweep, checked in this process.

    Raises:
        CannotWriteError: this machine does not see the folder.
    """
    global _job, _checked
    torch.set_num_threads(job.threads)
    if os.path.isdir(job.cwd):
        os.chdir(job.cwd)
    if _checked is None or _job != job.run:
        if not (Path(job.folder) / "sweep.json").is_file():
            raise CannotWriteError(
                f"{socket.gethostname()} does not see {job.folder}; give -o a folder on a file system that all nodes "
                "of the cluster share"
            )
        _checked = checking.check(job.design, SweepFolder(job.folder))
        _job = job.run
    return _checked


def _load(job: Job, label: str, make: Callable[[checking.Checked, Model, str], Any]) -> Any:
    global _label, _worker
    release()
    checked = checked_here(job)
    model = next(model for model in checked.design.models if model.label == label)
    _worker = make(checked, model, job.device)
    _label = label
    return _worker


def _find(worker: Worker, row_name: str, counts: tuple[int, ...]) -> tuple[Row, checking.Schedule]:
    label = worker.model.label
    row = next(row for row in worker.checked.rows if (row.model.label, row.name) == (label, row_name))
    return row, next(s for s in worker.checked.schedules[label, row_name] if s.checkpoints == counts)
