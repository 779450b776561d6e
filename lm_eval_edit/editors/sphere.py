"""SPHERE: another editor's update, kept away from the principal directions of the weights it is added to.

*Energy-Regularized Sequential Model Editing on Hyperspheres*, ICLR 2026 (arXiv 2510.01172). With W (d x f), a map from
keys, and Ŵ the same with rows of length one, U (f x r) are the leading eigenvectors of ŴᵀŴ / d: as many as have a
cumulative share of at most β of the eigenvalues' sum, and one more. Then

    Δ ← Δ (I − η U Uᵀ)

so that ΔU becomes (1 − η) ΔU, and what the update does to keys orthogonal to U stays as it was. W is the weight before
the operation, in the sequence of edits the one its predecessors left.

β = 0.5. η = 0.5 over AlphaEdit and 0.8 over the other methods, as published. EasyEdit (July 2026) has it over AlphaEdit
alone, under the option names used here; there GPT-2's transposed weights are not turned, so that the directions are
those of the residual stream in place of the keys'. Here a row of W is what a map of keys has for one of its outputs,
whatever the layout.

Each of a mixture's experts has directions of its own. A change of a parameter that is no linear map's matrix (a bias,
for instance) stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lm_eval_edit.editors._shared.wrapping import WrappingEditor
from lm_eval_edit.editors.alphaedit import AlphaEdit
from lm_eval_edit.editors.base import EditContext, Editor, option
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.models.architecture import is_linear, is_transposed
from lm_eval_edit.weights.delta import Delta, DenseDelta, LowRankDelta, SparseDelta
from lm_eval_edit.weights.stacked import SliceWise

OVER_ALPHAEDIT, OVER_OTHERS = 0.5, 0.8  # η as published


@dataclass(frozen=True)
class SphereOptions:
    """Hyper-parameters of SPHERE, under EasyEdit's names; those of the editor it regularises are given beside them."""

    over: str = option("the editor whose updates are projected", default="alphaedit")
    cumulative_ratio: float = option(
        "β, the share of the eigenvalues' sum up to which directions are principal", default=0.5, tuned=False
    )
    suppression_strength: float | None = option(
        "η, how much of the update is taken from principal directions; by default 0.5 over alphaedit, else 0.8",
        default=None,
    )

    def __post_init__(self) -> None:
        if not 0 <= self.cumulative_ratio <= 1:
            raise ValueError(
                f"cumulative_ratio={self.cumulative_ratio}: want a share from 0 (one direction) to 1 (all); 0.5 is "
                f"the published one"
            )
        if self.suppression_strength is not None:
            object.__setattr__(self, "suppression_strength", _strength(self.suppression_strength))


def _strength(value: Any) -> float:
    try:
        strength = float(value) if not isinstance(value, bool) else -1.0
    except (TypeError, ValueError):
        strength = -1.0
    if not 0 < strength <= 1:
        raise ValueError(
            f"suppression_strength={value!r}: want a number above 0 and at most 1, which takes all; published are 0.5 "
            f"over alphaedit and 0.8 over other editors"
        )
    return strength


class Sphere(WrappingEditor):
    """Δ ← Δ (I − η U Uᵀ), U the principal directions of the present weight's rows."""

    name = "sphere"
    summary = "another editor's update, projected off the principal directions of the present weights"
    source = "Energy-Regularized Sequential Model Editing on Hyperspheres 2026, arXiv 2510.01172"
    Options = SphereOptions
    unused_fields = frozenset(("mom2_update_weight", "P_loc"))  # of EasyEdit's files, which are over AlphaEdit

    def __init__(self, options: SphereOptions, inner: Editor):
        if options.suppression_strength is None:
            usual = OVER_ALPHAEDIT if isinstance(inner, AlphaEdit) else OVER_OTHERS
            options = replace(options, suppression_strength=usual)
        super().__init__(options, inner)

    def alter(self, context: EditContext, facts: Sequence[Fact], parameter: str, delta: Delta) -> Delta:
        module = context.model.get_submodule(parameter.rpartition(".")[0])
        weight = context.model.get_parameter(parameter).detach()
        experts = [mixture for mixture in context.architecture.mixtures if mixture and mixture.down == parameter]
        if experts and isinstance(delta, SliceWise):  # each expert's own matrix
            turned = experts[0].transposed
            return delta.mapped(lambda place, one: self._off_principal(weight[place], one, turned))
        if len(delta.shape) != 2 or not is_linear(module):
            return delta
        return self._off_principal(weight, delta, is_transposed(module))

    def _off_principal(self, weight: Tensor, delta: Delta, transposed: bool) -> Delta:
        directions = principal_directions(weight.T if transposed else weight, self.options.cumulative_ratio)
        return projected(delta, directions, self.options.suppression_strength, transposed)


def principal_directions(weight: Tensor, share: float) -> Tensor:
    """U (f, r) in float64: the leading eigenvectors of ŴᵀŴ / d, those within the cumulative `share` and one more.

    They come from the smaller of ŴᵀŴ and ŴŴᵀ, which have the same eigenvalues above zero.

    Args:
        weight: W (d, f).
    """
    rows = weight.double()
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    d, f = rows.shape
    wide = f > d
    values, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    kept = int((values.cumsum(0) / values.sum() <= share).sum()) + 1
    # A direction that the rows do not use is not principal, and cannot be found from the smaller side.
    kept = min(kept, int((values > values[0] * torch.finfo(torch.float64).eps * max(d, f)).sum()))
    principal: Tensor = vectors[:, :kept]
    if not wide:
        return principal
    # Orthogonal already, but where an eigenvalue is small beside the first only to fewer digits.
    principal = torch.linalg.qr(rows.T @ principal).Q
    return principal


def projected(delta: Delta, directions: Tensor, strength: float, transposed: bool) -> Delta:
    """Δ (I − η U Uᵀ) as a map from keys, in the parameter's layout; factors stay factors of the same rank."""
    if isinstance(delta, SparseDelta):
        delta = delta.to_low_rank()

    def off(rows: Tensor) -> Tensor:  # (n, f)
        u = directions.to(rows.device)
        wide = rows.double()
        return (wide - strength * (wide @ u) @ u.T).to(rows.dtype)

    if isinstance(delta, LowRankDelta):
        if transposed:
            return LowRankDelta(off(delta.left.T).T.contiguous(), delta.right)
        return LowRankDelta(delta.left, off(delta.right).contiguous())
    value = delta.tensors()["value"] if isinstance(delta, DenseDelta) else delta.dense()
    return DenseDelta(off(value.T).T.contiguous() if transposed else off(value))
