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
from lm_eval_edit.errors import UserError, problems_of
from lm_eval_edit.facts.chat import placed
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.facts.sources import load_facts

DROPPED = 0.05  # of the largest norms, when the anchor is measured
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


# ----------------------------------------------------------------------------------------------------------- the anchor


def anchors(
    context: EditContext, facts: Sequence[Fact], layers: Sequence[int], options: BatchOptions
) -> dict[str, float]:
    """{name: m} for every block with goals: given, or measured on the weights as they stand, those of no edit.

    Args:
        context: With the schedule's facts, of which the first are taken for `norm_anchor=auto`.
        facts: To take where the context has no schedule.
        layers: The blocks with goals.
        options: With `norm_anchor` and `norm_anchor_facts`.

    Raises:
        UserError: there are fewer facts than `norm_anchor_facts`.
    """
    given = options.norm_anchor
    if not isinstance(given, str):
        return {}
    some = list(context.schedule or facts) if given == "auto" else placed(list(load_facts(given)), context.chat)
    if problems := too_few(len(some), options):
        raise UserError(problems[0])
    some = some[: options.norm_anchor_facts]
    return {anchor_name(layer): mean_norm(find_goals(context, some, layer, options).wished) for layer in layers}


def too_few(n_facts: int, options: BatchOptions) -> list[str]:
    """The problem of an anchor that would be taken over fewer facts than it should, as a list of sentences.

    A mean over whatever a run happens to edit would make a run of 20 facts another one than the first 20 of 100.

    Args:
        n_facts: Of the run, which are taken for `norm_anchor=auto`.
    """
    if isinstance(options.norm_anchor, str) and options.norm_anchor != "auto":
        try:
            n_facts = len(load_facts(options.norm_anchor))
        except UserError as error:
            return [f"norm_anchor={options.norm_anchor}: {problem}" for problem in problems_of(error)]
    if not isinstance(options.norm_anchor, str) or n_facts >= options.norm_anchor_facts:
        return []
    where = "the run edits" if options.norm_anchor == "auto" else f"{options.norm_anchor} has"
    return [
        f"norm_anchor={options.norm_anchor}: the anchor is the mean over {options.norm_anchor_facts} facts, and "
        f"{where} {n_facts}. "
        f"Give norm_anchor_facts={n_facts or 1}, norm_anchor=FILE with more facts, or the number itself"
    ]


def mean_norm(wished: Tensor) -> float:
    """m: the mean of ‖v*‖ over v* (n, d), the largest twentieth left out."""
    norms = wished.norm(dim=1).sort().values
    return float(norms[: max(1, round(len(norms) * (1 - DROPPED)))].mean())


def anchor_name(layer: int) -> str:
    """The name of a block's anchor among what the first operation found in the model."""
    return f"norm_anchor.{layer}"
