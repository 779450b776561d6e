"""ENCORE: MEMIT with all earlier keys, a restrained norm, and targets that are not optimised further than they need be.

Gupta et al., *Lifelong Knowledge Editing requires Better Regularization* (arXiv 2502.01636). Two things make an edited
model overflow in a long run: targets that were optimised until the new object is all but certain, and updates whose
norm nothing restrains. ENCORE stops a target a few steps after every context gives the new object (most probable early
stopping) and adds μI to the normal equations (`update_norm_lambda`). Both are options of `memit_seq`; this method is
that one with ENCORE's settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lm_eval_edit.editors.base import EditContext, option
from lm_eval_edit.editors.memit_seq import MemitSeq, MemitSeqOptions
from lm_eval_edit.facts.fact import Fact


@dataclass(frozen=True)
class EncoreOptions(MemitSeqOptions):
    """Hyper-parameters of `memit_seq` with ENCORE's defaults."""

    v_num_grad_steps: int = option(
        "forward passes of the target optimisation: one more than Adam steps", default=25, sign="positive"
    )
    stop_after_correct: int | None = option(
        "stop a fact's target this many steps after all contexts answer it", default=2, least=0, tuned=False
    )
    update_norm_lambda: float | None = option(
        "μ, weight of the update's own norm", from_model="λ times the median eigenvalue of C over the edited layers"
    )


class Encore(MemitSeq):
    """`memit_seq` with `update_norm_lambda` (μ) and `stop_after_correct` as ENCORE sets them."""

    name = "encore"
    summary = "memit_seq with a restrained update norm and targets that stop early"
    source = "Gupta et al. 2025, arXiv 2502.01636"
    Options = EncoreOptions

    def _from_model(self, context: EditContext, facts: Sequence[Fact]) -> dict[str, float]:
        found = super()._from_model(context, facts)
        if self.options.update_norm_lambda is None:
            modules = [context.architecture.down_projections[layer] for layer in self.layers()]
            weight = found.get("mom2_update_weight", self.options.mom2_update_weight)
            found["update_norm_lambda"] = weight * context.second_moments.median_eigenvalue(modules)
        return found
