"""What the MEMIT family wants a block to give at the subjects' last tokens, and the norm-anchored form of it.

MEMIT's goal is z = z_init + δ (eq. 16). NAS (norm-anchored scaling, arXiv 2602.02543) looks at v* = v_0 + δ, v_0 the
MLP's own output. In a long run ‖v*‖ grows from edit to edit; NAS scales v* back to the mean norm m that targets have on
the unedited model, v* ← m v* / ‖v*‖, and does not edit a fact whose ‖v*‖ is above 2 m.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lm_eval_edit.editors._shared.batch_options import BatchOptions
from lm_eval_edit.editors._shared.progress import steps
from lm_eval_edit.editors._shared.target import optimise_targets
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.facts.fact import Fact

LIMIT = 2.0  # anchors; a longer v* is left out


@dataclass(frozen=True)
class Goals:
    """What one block should give for n facts' bare prompts, in float64.

    Attributes:
        init: (n, d) what it gives.
        delta: (n, d) the shift that was optimised.
        mlp: (n, d) what its MLP gives, v_0.
        edited: (n,) which facts are edited; the others' residual counts as zero.
        details: Figures for the ledger.
    """

    init: Tensor
    delta: Tensor
    mlp: Tensor
    edited: Tensor
    details: dict[str, Any]

    @property
    def values(self) -> Tensor:
        """(n, d) z."""
        return self.init + self.delta

    @property
    def wished(self) -> Tensor:
        """(n, d) v*, what the MLP should give."""
        return self.mlp + self.delta

    def anchored(self, anchor: float, facts: Sequence[Fact]) -> Goals:
        """Goals whose v* have the norm `anchor`; a fact with ‖v*‖ above twice that is left out and listed."""
        before = self.wished.norm(dim=1)
        edited = before <= LIMIT * anchor
        scaled = self.wished * (anchor / before)[:, None] - self.mlp
        delta = torch.where(edited[:, None], scaled, torch.zeros_like(scaled))
        told = {
            "norm_anchor": anchor,
            "norms_before": before.tolist(),
            "left_out": [fact.id for fact, taken in zip(facts, edited.tolist(), strict=True) if not taken],
        }
        return Goals(self.init, delta, self.mlp, edited, self.details | told)


def find_goals(context: EditContext, facts: Sequence[Fact], layer: int, options: BatchOptions) -> Goals:
    """Optimise the goal of every fact at the output of a block, `v_batch_size` facts at a time.

    Args:
        context: With nested context templates.
        facts: The n facts.
        layer: The block.
        options: Of the optimisation.
    """
    found = []
    with steps(None, "targets", "fact", show=context.progress, total=len(facts)) as bar:
        for start in range(0, len(facts), options.v_batch_size):
            chunk = facts[start : start + options.v_batch_size]
            targets = optimise_targets(
                context.model,
                context.tokenizer,
                context.architecture,
                chunk,
                layer=layer,
                site="block",
                contexts=[template for templates in context.context_templates for template in templates],
                steps=options.v_num_grad_steps,
                lr=options.v_lr,
                weight_decay=options.v_weight_decay,
                clamp_norm_factor=options.clamp_norm_factor,
                kl_factor=options.kl_factor,
                stop_after_correct=options.stop_after_correct,
                progress=context.progress,
            )
            mlp = targets.outputs[:, 0]
            found.append((targets.init, targets.delta, mlp, targets.losses, targets.steps, targets.stopped))
            bar.update(len(chunk))
    init, delta, mlp, losses, taken, stopped = (torch.cat(parts) for parts in zip(*found, strict=True))
    details: dict[str, Any] = {"loss": losses.tolist(), "steps": taken.tolist()}
    if options.stop_after_correct is not None:
        details["stopped_after_correct"] = int(stopped.sum())
    return Goals(init.double(), delta.double(), mlp.double(), torch.ones_like(stopped), details)
