"""Hypernetworks of MEND: one as if it had been trained, and one that was, as training and as editing use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lm_eval_edit import Fact, Facts
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.mend.batch import Batch, edited, exact_batch
from lm_eval_edit.editors.mend.editor import Mend, MendOptions
from lm_eval_edit.editors.mend.network import MendNetwork
from lm_eval_edit.editors.mend.training import _Trainer
from lm_eval_edit.editors.mend.training_settings import MendTrainingSettings
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from tests.support.tiny import tiny_tokenizer

INNER = tuple(f"transformer.h.{layer}.mlp.{name}.weight" for layer in (1, 2) for name in ("c_proj", "c_fc"))
SHAPES = ((96, 32), (32, 96), (96, 32), (32, 96))


def trained_network(inner=INNER, shapes=SHAPES) -> MendNetwork:
    """A hypernetwork with random weights and statistics, as if it had been trained."""
    generator = torch.Generator().manual_seed(0)
    network = MendNetwork(inner, shapes, rank=8, edit_lr=0.01, generator=generator)
    for transform in network.mend.values():
        width_u, width_v = transform.widths
        transform.observe(
            torch.randn(40, width_u, generator=generator) * 2 + 1, torch.randn(40, width_v, generator=generator) * 0.01
        )
        for layer in transform.mlp["layers"]:
            for parameter in layer.parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


@dataclass(frozen=True)
class BothWays:
    """Some facts edited by one archive as training does it, and what editing needs to do the same.

    Attributes:
        editor, context: To compute the editor's own deltas.
        trainer: Whose factors were used.
        factors: For each edited weight (keys, values), a row a fact.
        batch: Prompts about the facts' subjects that no fact has.
        together, unedited: Their log-probabilities, every row through its own edited model, and without any edit.
    """

    editor: Mend
    context: EditContext
    trainer: _Trainer
    factors: Any
    batch: Batch
    together: torch.Tensor
    unedited: torch.Tensor


def both_ways(
    model: Any, archive: Path, facts: Sequence[Fact], trained_on: Sequence[Fact], settings: MendTrainingSettings
) -> BothWays:
    """Edit `facts` in one batch with low-rank factors, by an archive that was trained on `trained_on`."""
    tokenizer, editor = tiny_tokenizer(), Mend(MendOptions(archive=str(archive)))
    context = EditContext(model, tokenizer, Architecture.discover(model), (), SecondMoments())
    trainer = _Trainer(model, tokenizer, Facts(tuple(trained_on)), archive.with_name("other"), settings)
    trainer.network.load_state_dict(editor._network.to(torch.float64).state_dict())
    with torch.no_grad():
        factors = trainer._factors(facts, observe=False)
        batch = exact_batch(tokenizer, [replace(fact, prompt="{} was born in") for fact in facts])
        with edited(trainer.modules, factors):
            together = batch.log_probs(model)
        return BothWays(editor, context, trainer, factors, batch, together, batch.log_probs(model))
