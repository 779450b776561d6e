"""EMMET: ROME's exact insertion, for a batch of facts.

Gupta et al., *A Unified Framework for Model Editing*, Findings of EMNLP 2024 (arXiv 2403.14236). MEMIT trades the
facts' residuals against the disturbance of ordinary text; EMMET takes the facts as constraints, W K = V, and disturbs
ordinary text least among the updates that meet them. `emmet_lambda` relaxes the constraints as the published code does:
at 0 they hold exactly, at 1 the update is MEMIT's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lm_eval_edit.editors._shared.keys import solve_small_batch
from lm_eval_edit.editors._shared.scale import EMMET_CLOSED, NOTHING, update_weight
from lm_eval_edit.editors.base import EditContext, Editor, option
from lm_eval_edit.editors.memit import Memit, MemitOptions
from lm_eval_edit.facts.fact import Fact


@dataclass(frozen=True)
class EmmetOptions(MemitOptions):
    """Hyper-parameters of EMMET, under EasyEdit's names: MEMIT's, and two that make its systems well conditioned."""

    mom2_update_weight: float | None = option(
        "λ, how much ordinary text weighs",
        from_model="such that the first operation closes as much of the residual as GPT-2 XL's published settings do",
    )
    emmet_lambda: float = option("ρ, by how much the constraints W K = V are relaxed", default=0.1)
    update_norm_lambda: float = option("μ, weight of the update's own norm", default=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("emmet_lambda", "update_norm_lambda"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name):g}: want a number that is not negative")


class Emmet(Memit):
    """W ← W + R (Kᵀ C'⁻¹ K + ρI)⁻¹ Kᵀ C'⁻¹ with C' = λC + μI; targets, keys and layers as in MEMIT."""

    name = "emmet"
    summary = "ROME's equality constraint for a batch of facts"
    source = "Gupta et al. 2024, arXiv 2403.14236"
    Options = EmmetOptions

    @classmethod
    def default_layers(cls, n_layers: int) -> tuple[int, ...]:
        """One layer, as deep as ROME's."""
        return Editor.default_layers(n_layers)

    def _from_model(self, context: EditContext, facts: Sequence[Fact]) -> dict[str, float]:
        o = self.options
        if o.mom2_update_weight is not None:
            return {}
        # With ρ = 0 the constraints hold whatever λ is; it only has to be of the systems' size.
        ridge = o.emmet_lambda or 0.1
        return {
            "mom2_update_weight": update_weight(
                context, facts, self.layers(), EMMET_CLOSED, ridge, len(self._groups()[0])
            )
        }

    def _directions(
        self,
        context: EditContext,
        layer: int,
        keys: Tensor,
        history: Sequence[Mapping[str, Tensor]],
        scale: Mapping[str, float] = NOTHING,
    ) -> Tensor:
        """A (f, n) = C'⁻¹ K (Kᵀ C'⁻¹ K + ρI)⁻¹."""
        o = self.options
        module = context.architecture.down_projections[layer]
        weight = scale.get("mom2_update_weight", o.mom2_update_weight)
        factor = context.second_moments.cholesky(module, o.update_norm_lambda / weight, keys.device)
        return solve_small_batch(factor, weight, keys, ridge=o.emmet_lambda)
