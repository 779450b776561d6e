"""Blocks below the edits, run once for all checkpoints of a model: which rows may share them, and that they do.

A row's passes may begin at the lowest block that its editor says it edits. What its edits have touched, and a hash of
all weights below, are held against that before every evaluation.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from lm_eval_edit.edits.opened import without_weights
from lm_eval_edit.errors import UserError
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.models.lower_blocks import LowerBlocks, lower_tensors
from lm_eval_edit.models.tried_above import why_not
from lm_eval_edit.sweep.checking import Checked, loading_args
from lm_eval_edit.sweep.design import Model, Row
from lm_eval_edit.weights.fingerprint import hash_of_json, tensor_hash

logger = logging.getLogger("lm_eval_edit")

GIB = 2**30


@dataclass(frozen=True)
class Floor:
    """How far up the evaluations of a row may begin.

    Attributes:
        level: The lowest block that is edited; 0 where they cannot begin above any.
        why: Why not; empty where they can.
    """

    level: int
    why: str = ""


def floor_of(names: Iterable[str] | None, architecture: Architecture) -> Floor:
    """How far up passes may begin where these parameters are edited.

    Args:
        names: Of the parameters; None where that shows once the edits are made.
        architecture: The model's parts.
    """
    if names is None:
        return Floor(0, "what it edits shows once it has")
    lowest = architecture.n_layers - 1
    for name in names:
        layer = next((n for n, path in enumerate(architecture.blocks) if name.startswith(f"{path}.")), None)
        if layer is None:
            return Floor(0, f"it edits {name}, which is in no block")
        if layer == 0:
            return Floor(0, f"it edits block 0 ({name})")
        lowest = min(lowest, layer)
    return Floor(lowest)


def floors(checked: Checked, model: Model, loaded: PreTrainedModel | None = None) -> dict[str, Floor]:
    """Name of each row of a model -> how far up its evaluations may begin.

    Args:
        loaded: The model; its shapes are made where it is not loaded.

    Raises:
        UserError, ValueError: it is no model that could be edited, or cannot be made without its weights.
    """
    rows = [row for row in checked.rows if row.model == model]
    if loaded is None:
        config = checked.configs.get(model.label)
        if config is None:
            raise UserError("its configuration is not known here")
        loaded = without_weights(config, bool(loading_args(checked.design, model).get("trust_remote_code")))
    architecture = Architecture.discover(loaded)
    return {row.name: _floor(checked, row, loaded, architecture) for row in rows}


def _floor(checked: Checked, row: Row, model: PreTrainedModel, architecture: Architecture) -> Floor:
    """The lowest of a row's schedules."""
    found = []
    for schedule in checked.schedules[row.model.label, row.name]:
        if schedule.plan is None or schedule.plan.hyperparameters is None:
            return Floor(0, "its plan has problems")
        try:
            names = schedule.plan.hyperparameters.editor.parameters(model, architecture)
        except UserError as error:
            return Floor(0, str(error))
        found.append(floor_of(names, architecture))
    return min(found, key=lambda floor: floor.level)


def share_lines(checked: Checked, gib: float) -> list[str]:
    """What a dry run says: which rows share which blocks, and why the others do not."""
    lines = []
    for model in checked.design.models:
        try:
            found = floors(checked, model)
        except (UserError, ValueError) as error:
            lines.append(f"{model.label}: no blocks are shared: {error}")
            continue
        rows: dict[Floor, list[str]] = {}
        for name, floor in found.items():
            rows.setdefault(floor, []).append(name)
        shared = sorted((floor for floor in rows if floor.level), key=lambda floor: floor.level)
        if shared:
            lines.append(
                f"{model.label}: blocks below the edits are run once, for the unedited model and every checkpoint, if "
                f"the loaded model proves that this changes no bit; up to {gib:g} GiB of what leaves them are kept"
            )
        lines += [f"  below block {floor.level}: {', '.join(rows[floor])}" for floor in shared]
        lines += [f"  not shared ({floor.why}): {', '.join(names)}" for floor, names in rows.items() if not floor.level]
    return lines


class Sharing:
    """The blocks of one loaded model that evaluations share.

    Args:
        found: How far up each row may begin.
        model: Loaded, with its unedited weights.
        label: The model's, for what is said.
        limit: GiB that may be kept.

    Attributes:
        lower: What is shared; None where nothing can be, which was said.
    """

    @classmethod
    def of(cls, checked: Checked, model: Model, loaded: PreTrainedModel, limit: float) -> Sharing | None:
        """Of a model of a sweep; None where it has no parts that are known, which is said."""
        try:
            return cls(floors(checked, model, loaded), loaded, model.label, limit)
        except UserError as error:
            logger.warning("%s: blocks are not shared: %s", model.label, error)
            return None

    def __init__(self, found: Mapping[str, Floor], model: PreTrainedModel, label: str, limit: float):
        self.model, self.label, self.floors = model, label, found
        self.lower: LowerBlocks | None = None
        for name, floor in found.items():
            if not floor.level:
                logger.warning("%s: blocks are not shared: %s", name, floor.why)
        levels = sorted({floor.level for floor in found.values()} - {0})
        if not levels:
            return
        architecture = Architecture.discover(model)
        for_prompts, for_generating = why_not(model, architecture, levels)
        if for_prompts:
            logger.warning("%s: blocks are not shared: %s", label, for_prompts)
            return
        if for_generating:
            logger.warning("%s: blocks are not shared where text is generated: %s", label, for_generating)
        self._architecture = architecture
        self._hashes = {level: self._hash(level) for level in levels}
        self.lower = LowerBlocks(model, architecture, levels, limit * GIB, caches=not for_generating)

    @contextlib.contextmanager
    def during(self, row: Row | None, ledger: Any) -> Iterator[None]:
        """Within, the model is evaluated as it stands, from as far up as may be.

        Args:
            row: Whose edits the model carries or, with `ledger`, has carried; None for none.
            ledger: Of those edits; None for an unedited model.
        """
        if self.lower is None:
            yield
            return
        level = max(self._hashes)
        if ledger is not None:
            assert row is not None, "edits are of a row"
            level = self.floors[row.name].level
            touched = floor_of(ledger.weights.touched, self._architecture)
            if level and touched.level < level:
                logger.warning(
                    "%s: blocks are not shared: it has edited below block %d, where its editor says that it begins",
                    row.name, level,
                )  # fmt: skip
                level = 0
        if level and self._hash(level) != self._hashes[level]:
            logger.warning("%s: blocks are not shared: the weights below block %d have changed", self.label, level)
            level = 0
        with self.lower.used(level):
            yield

    def _hash(self, level: int) -> str:
        """Of everything below a block."""
        tensors = lower_tensors(self.model, self._architecture.blocks, level)
        return hash_of_json({name: tensor_hash(tensor) for name, tensor in tensors})

    def told(self) -> str:
        """What was shared, as a line; empty where nothing could be."""
        if self.lower is None:
            return ""
        counts = self.lower.counts
        return (
            f"{self.label}: lower blocks shared: {counts.hits} batches began above them, {counts.misses} were kept, "
            f"{counts.full} found no room, {counts.others} could not share, {counts.dropped} were dropped; "
            f"{counts.most / GIB:.2g} GiB kept at most"
        )
