"""R-ROME: ROME with one key throughout, so that no single edit breaks the model.

Gupta et al., *Rebuilding ROME: Resolving Model Collapse during Sequential Model Editing*, EMNLP 2024 (arXiv
2403.07175). The published ROME takes the mean key over the context templates for the update's direction, but the bare
prompt's key in its denominator. Where the two differ much the denominator is near zero, and the update large enough to
disable the model. Here both are the same key.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lm_eval_edit.editors._shared.target import Targets
from lm_eval_edit.editors.base import option
from lm_eval_edit.editors.rome import Rome, RomeOptions


@dataclass(frozen=True)
class RRomeOptions(RomeOptions):
    """Hyper-parameters of R-ROME, under EasyEdit's names: ROME's, and which key is used throughout."""

    enable_random_prefix_keys: bool = option("use the mean key over the context templates", default=True)
    enable_prompt_keys: bool = option("use the bare prompt's key instead", default=False)
    original_implementation: bool = option("the published ROME; only false", default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.original_implementation:
            raise ValueError("original_implementation=True is ROME with its two different keys: use editor=rome")
        if self.enable_random_prefix_keys == self.enable_prompt_keys:
            raise ValueError(
                f"enable_random_prefix_keys={self.enable_random_prefix_keys} and enable_prompt_keys="
                f"{self.enable_prompt_keys}: R-ROME uses one of the two keys; set exactly one of them true"
            )


class RRome(Rome):
    """W ← W + (v* − W k*) (C⁻¹ k*)ᵀ / ((C⁻¹ k*)ᵀ k*), so that W k* = v* for the key k* that gives the direction."""

    name = "r_rome"
    summary = "ROME with the same key in its direction and its denominator"
    source = "Gupta et al. 2024, arXiv 2403.07175"
    Options = RRomeOptions
    options: RRomeOptions

    def _key(self, targets: Targets) -> Tensor:
        return targets.keys[0, 0] if self.options.enable_prompt_keys else targets.keys[0].mean(dim=0)

    def _solve(self, targets: Targets) -> tuple[Tensor, Tensor]:
        """(k*, v* − W k*), where W k* is the mean output over the same prompts as k* is the mean key."""
        if self.options.enable_prompt_keys:
            return targets.keys[0, 0], targets.value[0] - targets.outputs[0, 0]
        return targets.keys[0].mean(dim=0), targets.value[0] - targets.outputs[0].mean(dim=0)
