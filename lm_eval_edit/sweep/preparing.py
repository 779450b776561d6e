"""The first half of a served sweep: one loaded model makes the edits, and writes what a served model needs of them.

What an engine cannot be asked for is found here, while the edits are on the model of this process: the perplexity that
tells a collapse, the answers of the tasks about the row's own facts (which want the weights of every state of the
row), the record of the edits, and a few log-probabilities that the served model must give again.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.utils import handle_non_serializable

from lm_eval_edit import demo
from lm_eval_edit.edits.source import describe_source
from lm_eval_edit.edits.surroundings import frame_of
from lm_eval_edit.errors import ConfigurationError
from lm_eval_edit.export.adapter import Adapter, make_adapter, unexpressible, write_adapter
from lm_eval_edit.export.checkpoint import write_checkpoint
from lm_eval_edit.export.commands import vllm_rank, why_no_rank
from lm_eval_edit.export.sums import sum_deltas
from lm_eval_edit.facts.chat import placed
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.models.dtypes import dtype_name
from lm_eval_edit.sweep.checking import Checked, Schedule
from lm_eval_edit.sweep.design import Model, Row
from lm_eval_edit.sweep.evaluation import Evaluation
from lm_eval_edit.sweep.folder import Cell
from lm_eval_edit.sweep.prepared import ADAPTER, BASE, CHECKPOINT, WaitingRoom
from lm_eval_edit.sweep.worker import Checkpoint, Worker
from lm_eval_edit.weights.delta import Delta, LowRankDelta, SparseDelta
from lm_eval_edit.weights.edited import wide_dtype

logger = logging.getLogger("lm_eval_edit")

PROBES = 8  # edited facts whose log-probability is asked of both models, for each cell


class Preparer:
    """One loaded model: brings rows to their checkpoints and lets their cells wait.

    Args:
        checked: The sweep.
        model: Which of its models.
        device: As `--device`.
        room: Where cells wait.
        no_adapters: Why no adapter of this model can be served; None where adapters can.
    """

    def __init__(self, checked: Checked, model: Model, device: str | None, room: WaitingRoom, no_adapters: str | None):
        self.checked, self.room, self.no_adapters = checked, room, no_adapters
        # The tasks about the model are the engine's: neither their data nor their requests are wanted here.
        self.worker = Worker(replace(checked, general=()), model, device)
        self._unedited: dict[tuple[str, str], float] = {}

    def unedited(self, cell: Cell, facts: Sequence[Fact]) -> None:
        """Let the unedited model's cell wait.

        Args:
            facts: Some that will be edited; what the model says of them is asked of the engine as well.
        """
        self.worker.put_back()
        reached = Checkpoint(0, self.worker.unedited_perplexity, None, 0.0)
        record = self._record(BASE, self.worker.unedited_args(), reached, _probes(facts, None))
        self.room.put(cell, record)

    def before(self, cell: Cell) -> str:
        """Evaluate a row's own facts before its edits and store the cell. Returns its status."""
        return self.worker.evaluate_unedited(cell)

    def reach(self, row: Row, schedule: Schedule, n_edits: int, wanted: Sequence[int]) -> Checkpoint:
        """Bring the model to a checkpoint.

        Args:
            wanted: The schedule's checkpoints that are going to wait.
        """
        self.worker.take_up(schedule)
        ledger = self.worker.lm.ledger
        assert ledger is not None, "a row has an editor"
        if not ledger.applied:  # the unedited model's own answers, while it is the unedited one
            asked = [probe for n in wanted for probe in self._probes(schedule, n)]
            new = [probe for probe in dict.fromkeys(asked) if probe not in self._unedited]
            self._unedited.update(zip(new, self._log_probabilities(new), strict=True))
        return self.worker.edit_to(row, schedule, n_edits)

    def checkpoint(self, cell: Cell, schedule: Schedule, reached: Checkpoint) -> None:
        """Let a checkpoint's cell wait, the model standing there."""
        args = self.worker.edited_args(cell)
        found = Evaluation(None)
        started = time.perf_counter()
        if self.checked.about_schedule:
            found = self.worker.evaluator.run(args, general=False, schedule=True)
        kind, why, adapter = self._route()
        record = self._record(kind, args, reached, self._probes(schedule, cell.n_edits))
        record |= {"why": why, "evaluated": _evaluation(found), "seconds": time.perf_counter() - started}
        if adapter is not None:
            record |= {"rank": adapter.rank, "modules": sorted({_module(name) for name in adapter.factors})}
        self.room.put(cell, record, self._writer(adapter))

    # --------------------------------------------------------------------------------------------------------- details

    def _record(
        self, kind: str, args: dict[str, Any], reached: Checkpoint, probes: Sequence[tuple[str, str]]
    ) -> dict[str, Any]:
        lm, perplexity = self.worker.lm, reached.perplexity
        assert perplexity is not None, "a cell waits where the model could be brought"
        now = self._log_probabilities(probes)
        before = [self._unedited.get(probe) for probe in probes]
        record = {
            "kind": kind,
            "dtype": dtype_name(lm.model.dtype),
            "fingerprint": lm.weights_fingerprint,
            "args": args,
            "info": {"edit": lm.edit_record()},
            "reached": {
                "n_edits": reached.n_edits,
                "perplexity": perplexity if math.isfinite(perplexity) else "inf",
                "collapsed": reached.collapsed,
                "seconds": reached.seconds,
            },
            "probes": [[*probe, log_p, was] for probe, log_p, was in zip(probes, now, before, strict=True)],
        }
        return json.loads(json.dumps(record, default=handle_non_serializable))

    def _probes(self, schedule: Schedule, n_edits: int) -> list[tuple[str, str]]:
        assert schedule.plan is not None and self.worker.lm.ledger is not None, "a model is loaded, so there are both"
        facts = [fact for operation in schedule.plan.operations for fact in operation][:n_edits]
        return _probes(facts, frame_of({"extra": self.worker.lm.ledger.extra}))

    def _log_probabilities(self, probes: Sequence[tuple[str, str]]) -> list[float]:
        return log_probabilities(self.worker.lm, probes)

    def _route(self) -> tuple[str, str | None, Adapter | None]:
        """(adapter or checkpoint, why the latter, the former): decided by the updates themselves."""
        lm = self.worker.lm
        if self.no_adapters is not None:
            return CHECKPOINT, self.no_adapters, None
        try:
            adapter = make_adapter(lm.model, sum_deltas(self._expressible(), lm.model, wide_dtype(lm.model.dtype)))
        except ConfigurationError as error:
            return CHECKPOINT, "; ".join(error.problems), None
        if vllm_rank(adapter.rank) is None:
            return CHECKPOINT, why_no_rank(adapter.rank), None
        return ADAPTER, None, adapter

    def _expressible(self) -> Iterator[tuple[str, LowRankDelta | SparseDelta]]:
        """The updates that the model carries, as long as an adapter can express them.

        Raises:
            ConfigurationError: why it cannot express the next one.
        """
        for name, delta in self._deltas():
            if (why := unexpressible(self.worker.lm.model, name)) is not None:
                raise ConfigurationError([why])
            if not isinstance(delta, LowRankDelta | SparseDelta):
                raise ConfigurationError([f"the update of {name} is not low rank"])
            yield name, delta

    def _deltas(self) -> Iterator[tuple[str, Delta]]:
        """The updates that the model carries, one operation after another, so that one is in memory at a time."""
        ledger = self.worker.lm.ledger
        assert ledger is not None, "a row has an editor"
        for operation in ledger.applied_operations:
            yield from operation.deltas.items()
            operation.release()
        yield from ledger.correction.items()

    def _writer(self, adapter: Adapter | None) -> Callable[[Path], None]:
        lm = self.worker.lm
        if adapter is None:
            return lambda folder: write_checkpoint(lm.model, lm.tokenizer, folder)
        source = describe_source(lm.model)
        base = demo.loadable(str(source["pretrained"]))
        return lambda folder: write_adapter(lm.model, adapter, folder, base, source["revision"])


def _probes(facts: Sequence[Fact], frame: Any) -> list[tuple[str, str]]:
    """(prompt, new object) of some of the facts, at even distances, the first and the last among them."""
    if len(facts) > PROBES:
        facts = [facts[round(i * (len(facts) - 1) / (PROBES - 1))] for i in range(PROBES)]
    return [(fact.text, fact.target) for fact in placed(facts, frame)]


def log_probabilities(lm: Any, probes: Sequence[tuple[str, str]]) -> list[float]:
    """log p of each object after its prompt, asked of a model of the harness as its tasks ask."""
    requests = [Instance("loglikelihood", {}, probe, index) for index, probe in enumerate(probes)]
    return [float(answer[0]) for answer in lm.loglikelihood(requests, disable_tqdm=True)] if requests else []


def _evaluation(found: Evaluation) -> dict[str, Any]:
    return {"results": found.results, "samples": found.samples, "failed": found.failed}


def _module(parameter: str) -> str:
    return parameter.removesuffix(".weight").rpartition(".")[2]
