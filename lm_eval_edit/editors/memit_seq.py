"""MEMIT for edits that come one batch after another: its normal equations keep the keys of all earlier ones.

MEMIT's update forgets: λC + K Kᵀ knows of ordinary text and of the facts at hand, so each operation overwrites some of
what those before it wrote. With K_p, the keys of earlier operations, in the system as well, editing in batches gives
what editing all at once gives, as recursive least squares does. The authors of AlphaEdit (Fang et al. 2025, arXiv
2410.02355) have it among their baselines; arXiv 2605.26670 studies it, and finds little left for AlphaEdit's projection
to do. No earlier key is read twice: see `_shared.inverse_root`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lm_eval_edit.editors._shared.earlier_keys import KeepsKeys
from lm_eval_edit.editors._shared.scale import NOTHING
from lm_eval_edit.editors.base import EditContext, option
from lm_eval_edit.editors.memit import Memit, MemitOptions
from lm_eval_edit.moments.blocks import lower_solve, upper_solve


@dataclass(frozen=True)
class MemitSeqOptions(MemitOptions):
    """Hyper-parameters of MEMIT, and what earlier keys and the update's own norm weigh."""

    lambda_prev: float = option("how much the keys of earlier operations weigh; 0 is MEMIT", default=1.0, tuned=False)
    update_norm_lambda: float | None = option("μ, weight of the update's own norm", default=0.0, tuned=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lambda_prev", "update_norm_lambda"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value:g}: want a number that is not negative")


class MemitSeq(KeepsKeys, Memit):
    """W_l ← W_l + R_l Kᵀ(λC + μI + λ_p K_p K_pᵀ + K Kᵀ)⁻¹, K_p the keys of earlier operations; else as MEMIT."""

    name = "memit_seq"
    summary = "MEMIT that keeps the keys of all earlier operations in its normal equations"
    source = "Fang et al. 2025, arXiv 2410.02355 (baseline); arXiv 2605.26670"
    Options = MemitSeqOptions

    def _directions(
        self,
        context: EditContext,
        layer: int,
        keys: Tensor,
        history: Sequence[Mapping[str, Tensor]],
        scale: Mapping[str, float] = NOTHING,
    ) -> Tensor:
        """A (f, n) = (C' + λ_p K_p K_pᵀ + K Kᵀ)⁻¹ K with C' = λC + μI.

        With λ⁻¹C' = L Lᵀ and keys whitened by (√λ L)⁻¹ the system is I + λ_p V_p V_pᵀ + V Vᵀ.
        """
        o = self.options
        module = context.architecture.down_projections[layer]
        weight = scale.get("mom2_update_weight", o.mom2_update_weight)
        norm = scale.get("update_norm_lambda", o.update_norm_lambda)
        factor = context.second_moments.cholesky(module, norm / weight, keys.device)  # L (f, f)

        def whitened(given: Tensor, of: float = 1.0) -> Tensor:
            return lower_solve(factor, given * (of / weight) ** 0.5)

        earlier = self._earlier(
            history if o.lambda_prev else (),
            module, len(factor), keys, lambda given: whitened(given, o.lambda_prev), (weight, norm, o.lambda_prev),
        )  # fmt: skip
        directions: Tensor = upper_solve(factor, earlier.solve(whitened(keys))) / weight**0.5
        return directions
