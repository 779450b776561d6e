"""One loaded model of a sweep: brings a row to a checkpoint, evaluates a cell, stores it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import transformers

from lm_eval_edit.edits.guards import NotFiniteError
from lm_eval_edit.errors import in_one_line
from lm_eval_edit.harness.engines import TRANSFORMERS, Engine
from lm_eval_edit.model import EditedHFLM
from lm_eval_edit.models.dtypes import dtype_name
from lm_eval_edit.sweep.checking import Checked, Schedule, loading_args, row_args
from lm_eval_edit.sweep.collapse import perplexity
from lm_eval_edit.sweep.design import Model, Row
from lm_eval_edit.sweep.evaluation import Evaluation, Evaluator, Manner
from lm_eval_edit.sweep.folder import COLLAPSED, DONE, FAILED, Cell
from lm_eval_edit.sweep.shared_blocks import Sharing

logger = logging.getLogger("lm_eval_edit")


@dataclass(frozen=True)
class Checkpoint:
    """How a model stands at a checkpoint.

    Attributes:
        perplexity: Of a fixed text; None where the model could not be brought there.
        collapsed: Why the model counts as collapsed; None if it does not.
        seconds: Taken to bring the model there: by the edits since the checkpoint before, or by replaying them.
    """

    n_edits: int
    perplexity: float | None
    collapsed: str | None
    seconds: float

    @property
    def unreached(self) -> str | None:
        """Why the model could not be brought there; None where it stands there, collapsed or not."""
        return self.collapsed if self.perplexity is None else None


class Worker:
    """One model, loaded once, for any number of rows and cells of a sweep.

    Args:
        checked: The sweep.
        model: Which of its models.
        device: As HFLM takes it; None for its default.
        share_blocks: GiB in which to keep what leaves the blocks below the edits; None: every evaluation runs them.
    """

    def __init__(self, checked: Checked, model: Model, device: str | None, share_blocks: float | None = None):
        self.checked, self.model, design = checked, model, checked.design
        mine = [found for (label, _), found in checked.schedules.items() if label == model.label]
        plan = next(schedule.plan for found in mine for schedule in found if schedule.plan is not None)
        options = {name: value for name, value in plan.model_options.items() if name not in ("batch_size", "device")}
        if device is not None:
            options["device"] = device
        self.lm = EditedHFLM(pretrained=model.pretrained, batch_size=design.batch_size, **options)
        self.evaluator = Evaluator(
            self.lm,
            checked.general,
            checked.about_schedule,
            loading_args(design, model),
            limit=design.limit,
            include_path=design.include_path,
            batch_size=design.batch_size,
            log_samples=design.log_samples,
            manner=Manner(design.num_fewshot, design.apply_chat_template, design.fewshot_as_multiturn),
        )
        self.unedited_perplexity = perplexity(self.lm.model, self.lm.tokenizer)
        self._unedited = self.lm.plan
        self.sharing: Sharing | None = None
        if share_blocks is not None:
            self.sharing = Sharing.of(checked, model, self.lm.model, share_blocks)
        self._schedule: Schedule | None = None

    def put_back(self) -> None:
        """Bring the model to its unedited weights: what a row before has edited is no business of what comes next."""
        self.lm.begin(self._unedited)
        self._schedule = None

    def unedited_args(self, row: Row | None = None) -> dict[str, Any]:
        """What `--model_args` would say about the unedited model, or about a row's own facts before its edits."""
        if row is None:
            return {**loading_args(self.checked.design, self.model), "editor": "none"}
        args = row_args(self.checked.design, row, row.checkpoints[-1])
        return {**args, "editor": "none", "edit_facts_for": args["editor"]}

    def take_up(self, schedule: Schedule) -> None:
        """Make a schedule's edits the ones `edit_to` carries out, from the unedited weights."""
        if self._schedule is not schedule:
            self._schedule = None
            assert schedule.plan is not None, "a schedule is without a plan in a dry run only, which loads no model"
            self.lm.begin(schedule.plan)
            self._schedule = schedule

    def edit_to(self, row: Row, schedule: Schedule, n_edits: int) -> Checkpoint:
        """Bring the model to a checkpoint of a row; edits made before are replayed.

        Raises:
            EditError: edits that changed nothing.
        """
        self.take_up(schedule)
        started = time.perf_counter()
        try:
            self.lm.apply(row.operations(n_edits))
        except NotFiniteError as error:
            return Checkpoint(n_edits, None, str(error), time.perf_counter() - started)
        seconds = time.perf_counter() - started
        now = perplexity(self.lm.model, self.lm.tokenizer)
        bound, ratio = self.checked.design.stop_at_perplexity, now / self.unedited_perplexity
        collapsed = None
        if bound is not None and not ratio <= bound:
            collapsed = (
                f"after {n_edits} edits the perplexity of a fixed text is {now:.3g}, "
                f"{ratio:.3g} times the unedited model's (stop_at_perplexity: {bound:g})"
            )
        return Checkpoint(n_edits, now, collapsed, seconds)

    def evaluate_unedited(self, cell: Cell) -> str:
        """Evaluate a baseline, or a row's tasks before its edits, and store it. Returns the cell's status."""
        self.put_back()
        reached = Checkpoint(0, self.unedited_perplexity, None, 0.0)
        return self._evaluate(cell, self.unedited_args(cell.row), reached)

    def evaluate(self, cell: Cell, reached: Checkpoint) -> str:
        """Evaluate an edited cell, the model being at its checkpoint, and store it. Returns the cell's status.

        Raises:
            RuntimeError: the model is at no such checkpoint; nothing was stored.
        """
        return self._evaluate(cell, self.edited_args(cell), reached)

    def edited_args(self, cell: Cell) -> dict[str, Any]:
        """What `--model_args` would say about an edited cell, the model being at its checkpoint.

        Raises:
            RuntimeError: the model is at no such checkpoint.
        """
        assert cell.row is not None and self.lm.ledger is not None, "an edited cell is of a row, and its edits are made"
        applied, wanted = self.lm.ledger.applied, cell.row.operations(cell.n_edits)
        if applied != wanted:
            raise RuntimeError(f"{cell.path} is to be evaluated after {wanted} operations, {applied} are applied")
        return row_args(self.checked.design, cell.row, cell.n_edits)

    def _evaluate(self, cell: Cell, args: Mapping[str, Any], reached: Checkpoint) -> str:
        started = time.perf_counter()
        assert reached.perplexity is not None, "a cell is evaluated where the model could be brought"
        about_model = cell.row is None or cell.n_edits > 0
        try:
            with nullcontext() if self.sharing is None else self.sharing.during(cell.row, self.lm.ledger):
                found = self.evaluator.run(args, general=about_model, schedule=cell.row is not None)
        except Exception as error:  # what was found about the model's perplexity is kept all the same
            logger.exception("%s failed", cell.path)
            found = Evaluation(None, failed={"the evaluation": in_one_line(error)})
        record = cell_record(found, reached, self.lm.weights_fingerprint, time.perf_counter() - started)
        self.checked.folder.write(cell, record | {"engine": in_process(self.lm)}, found.results, found.samples)
        return str(record["status"])

    def mark(self, cell: Cell, status: str, reason: str) -> str:
        """Store a cell that could not be evaluated. Returns its status."""
        mark(self.checked, cell, status, reason)
        return status


def cell_record(found: Evaluation, reached: Checkpoint, fingerprint: str, seconds: float) -> dict[str, Any]:
    """What cell.json says of an evaluated cell.

    Args:
        found: What the evaluation gave.
        reached: How the model stood.
        fingerprint: A hash of its weights.
        seconds: That the evaluation took.
    """
    failed = "; ".join(f"{task}: {why}" for task, why in found.failed.items())
    assert reached.perplexity is not None, "a cell is evaluated where the model could be brought"
    return {
        "status": FAILED if failed else DONE,
        "reason": failed or None,
        "failed_tasks": found.failed,
        "weights_fingerprint": fingerprint,
        "perplexity": reached.perplexity if math.isfinite(reached.perplexity) else "inf",  # JSON has no infinity
        "collapsed": reached.collapsed,
        "seconds": {"edit": reached.seconds, "evaluate": seconds},
    }


def in_process(lm: EditedHFLM) -> dict[str, Any]:
    """The engine of a model of this process, for cell.json."""
    return Engine(TRANSFORMERS, transformers.__version__, dtype_name(lm.model.dtype)).record()


def mark(checked: Checked, cell: Cell, status: str, reason: str) -> None:
    """Store a cell without figures: collapsed or failed, and why."""
    logger.warning("%s: %s: %s", cell.path, status, reason)
    checked.folder.write(cell, {"status": status, "reason": reason, "perplexity": None, "collapsed": None})


__all__ = ["COLLAPSED", "Checkpoint", "Worker", "cell_record", "in_process", "mark"]
