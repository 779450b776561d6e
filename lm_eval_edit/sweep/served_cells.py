"""The second half of a served sweep: one engine after another, each asked for the cells that wait for it."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lm_eval_edit.errors import in_one_line
from lm_eval_edit.export.commands import vllm_rank
from lm_eval_edit.harness import served
from lm_eval_edit.harness.engines import VLLM
from lm_eval_edit.sweep import serving
from lm_eval_edit.sweep.checking import Checked, loading_args
from lm_eval_edit.sweep.design import Model
from lm_eval_edit.sweep.engine import EngineLostError, guarded
from lm_eval_edit.sweep.evaluation import Evaluation, Evaluator, Manner
from lm_eval_edit.sweep.folder import DONE
from lm_eval_edit.sweep.prepared import ADAPTER, BASE, Prepared, WaitingRoom
from lm_eval_edit.sweep.preparing import log_probabilities
from lm_eval_edit.sweep.serving import Serving
from lm_eval_edit.sweep.worker import cell_record

_QUESTION = ("The sky is", " blue")  # any will do


class Server:
    """The engines of one model, one at a time.

    Args:
        how: The engine's arguments and version.
        room: Where cells wait.
        owner: The folder in which the engine's processes are noted while they live.
    """

    def __init__(self, checked: Checked, model: Model, how: Serving, room: WaitingRoom, owner: Path):
        self.checked, self.model, self.how, self.room, self.owner = checked, model, how, room, owner
        self.lm: Any = None
        self._evaluator: Evaluator | None = None

    def start(self, pretrained: str, dtype: str, adapters: served.Adapters | None) -> None:
        """Start an engine.

        Args:
            pretrained: What it loads: a folder or a hub id.
            adapters: What it must have room for; None for no adapters.
        """
        options = serving.model_options(self.checked, self.model, at_home=pretrained)
        self.lm = served.start(pretrained, dtype, options, self.how.arguments, adapters, self.owner)

    def stop(self) -> None:
        """End the engine, if there is one."""
        if self.lm is not None:
            lm, self.lm = self.lm, None
            served.stop(lm, self.owner)
            free()

    def serve(self, each: Prepared) -> str:
        """Evaluate a cell that waits and store it. Returns its status.

        Raises:
            EngineLostError: the engine does not answer any more; the cell still waits.
        """
        status = guarded(self.checked, each.cell, partial(self._evaluate, each))
        # What failed of the tasks asked while editing is asked again, so the edits are made again for it.
        if status == DONE or (each.record.get("evaluated") or {}).get("failed"):
            self.room.leave(each.cell)
        return status

    def _evaluate(self, each: Prepared) -> str:
        started, record = time.perf_counter(), each.record
        engine = self.how.record(each)
        try:
            own = self._asked(each, engine)
        except Exception as error:
            self._look(in_one_line(error))
            raise
        if own.failed:  # one task after another, as soon as there is no engine
            self._look("; ".join(f"{task}: {why}" for task, why in own.failed.items()))
        found = serving.joined(own, record.get("evaluated"))
        seconds = time.perf_counter() - started + record.get("seconds", 0.0)
        content = cell_record(found, each.reached, record["fingerprint"], seconds) | {"engine": engine}
        self.checked.folder.write(each.cell, content, found.results, found.samples)
        return str(content["status"])

    def _asked(self, each: Prepared, engine: dict[str, Any]) -> Evaluation:
        """What the engine says of a cell; `engine` is told how its check went."""
        record, lm = each.record, self.lm
        adapter = str(each.weights) if each.kind == ADAPTER else None
        lm.serve(served.Served(each.cell.path, record["fingerprint"], adapter, each.kind != BASE, record["info"]))
        engine["check"] = serving.check_answers(lm, each)
        lm.describe_engine(engine)
        return self._evaluator_now().run(record["args"], general=True)

    def _look(self, why: str) -> None:
        """Look whether the engine still answers after something has failed; without an adapter, which may be at fault.

        Raises:
            EngineLostError: it does not.
        """
        try:
            self.lm.serve(served.Served("unedited", ""))
            log_probabilities(self.lm, [_QUESTION])
        except Exception as error:
            raise EngineLostError(f"vLLM does not answer any more: {why}") from error

    def _evaluator_now(self) -> Evaluator:
        """The tasks and requests of this model's cells, made once for all its engines."""
        design = self.checked.design
        if self._evaluator is None:
            self._evaluator = Evaluator(
                self.lm,
                self.checked.general,
                (),
                loading_args(design, self.model),
                limit=design.limit,
                include_path=design.include_path,
                batch_size=design.batch_size,
                log_samples=design.log_samples,
                manner=Manner(design.num_fewshot, design.apply_chat_template, design.fewshot_as_multiturn),
                model_type=VLLM,
            )
        elif self._evaluator.lm is not self.lm:
            self._evaluator.take(self.lm)
        return self._evaluator


def adapters_of(cells: Sequence[Prepared]) -> served.Adapters | None:
    """What an engine needs for the adapters among these cells; None if there are none."""
    records: list[Mapping[str, Any]] = [each.record for each in cells if each.kind == ADAPTER]
    if not records:
        return None
    rank = vllm_rank(max(record["rank"] for record in records))
    assert rank is not None, "a higher rank waits as a checkpoint"
    return served.Adapters(rank, tuple(sorted({name for record in records for name in record["modules"]})))


def free() -> None:
    """Give back what nobody holds: models are held in cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
