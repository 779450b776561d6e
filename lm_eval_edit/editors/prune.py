"""PRUNE: at the end of a sequence of edits, the large singular values of their sum are restrained.

Ma et al., *Perturbation-Restrained Sequential Model Editing*, ICLR 2025 (arXiv 2405.16821). The edits themselves are
those of another editor. When all are done, D = W_n − W₀ = Σ σ̂ᵢ uᵢ vᵢᵀ, and with σ_max the largest singular value of W₀

    F(σ̂) = log_α(σ̂) − log_α(σ_max) + σ_max   where σ̂ > σ_max,   F(σ̂) = σ̂ elsewhere
    W    = W₀ + Σ F(σ̂ᵢ) uᵢ vᵢᵀ

α = 1.2 throughout the paper. AlphaEdit's repository, whose PRUNE is the one most compared with, takes the natural
logarithm and adds the restrained sum to W_n, which gives W₀ + D + F(D); here it takes D's place.

F begins at σ_max with the slope 1 / (σ_max ln α). Where that is above 1, values just above σ_max grow: a W₀ smaller
than those of the paper's models wants a larger α, and a warning says which.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lm_eval_edit.editors._shared.wrapping import WrappingEditor
from lm_eval_edit.editors.base import option
from lm_eval_edit.weights.delta import Delta, LowRankDelta
from lm_eval_edit.weights.stacked import stack

logger = logging.getLogger("lm_eval_edit")


@dataclass(frozen=True)
class PruneOptions:
    """Hyper-parameters of PRUNE; those of the editor it restrains are given beside them."""

    over: str = option("the editor whose sum of updates is restrained", default="memit")
    alpha: float = option("base of the logarithm; the larger, the tighter", default=1.2, tuned=False)

    def __post_init__(self) -> None:
        if not self.alpha > 1:
            raise ValueError(f"alpha={self.alpha}: want a base of the logarithm above 1 (the paper's is 1.2)")


class Prune(WrappingEditor):
    """W ← W₀ + F(W_n − W₀), F acting on singular values; no operation of its own but a correction at the end."""

    name = "prune"
    summary = "another editor's sequence, the singular values of its sum restrained at the end"
    source = "Ma et al. 2024, arXiv 2405.16821"
    Options = PruneOptions
    options: PruneOptions

    def finish(self, weights: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Delta]:
        """F(D) − D for each edited matrix whose sum of updates D reaches beyond σ_max; vectors are left alone."""
        deltas: dict[str, Delta] = {}
        for name, (original, change) in weights.items():
            if change.ndim == 2 and (correction := self._correction(name, original, change)):
                deltas[name] = correction
            elif change.ndim == 3:  # the matrices of a mixture's experts
                moved = change.flatten(1).any(dim=1).nonzero()[:, 0].tolist()
                found = {i: self._correction(f"{name}[{i}]", original[i], change[i]) for i in moved}
                if corrected := {i: correction for i, correction in found.items() if correction}:
                    deltas[name] = stack(corrected, change.shape)
        return deltas

    def _correction(self, name: str, original: Tensor, change: Tensor) -> LowRankDelta | None:
        bound = torch.linalg.matrix_norm(original, 2)
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
        above = int(((s > bound) & (bound > 0)).sum())  # singular values come in descending order
        if not above:
            return None
        correction = restrain(s[:above], bound, self.options.alpha) - s[:above]
        if bool((correction > 0).any()):
            logger.warning(
                "prune: with alpha=%g the restraint enlarges singular values of the change of %s, whose own "
                "largest is %.3g; from alpha=%.3g on it enlarges none",
                self.options.alpha, name, float(bound), float(torch.exp(1 / bound)),
            )  # fmt: skip
        return LowRankDelta(u[:, :above] * correction, vh[:above])


def restrain(values: Tensor, bound: Tensor, alpha: float) -> Tensor:
    """F (equation above) of singular values."""
    return torch.where(values > bound, torch.log(values / bound) / math.log(alpha) + bound, values)
