"""RECT: of another editor's update, apply only the entries that change their weight the most, relative to it.

Gu et al., *Model Editing Harms General Abilities of Large Language Models: Regularization to the Rescue*, EMNLP 2024
(arXiv 2401.04700), section on RECT: δ_ij = |ΔW_ij / W_ij|; the top k % of the entries by δ keep their value, the others
become zero, in each edit and each edited matrix.

The share kept: the authors' repository names 20 % in a line that is commented out (run, it would return no update);
AlphaEdit's repository (Fang et al. 2025, arXiv 2410.02355) runs RECT as a baseline at 40 %. The default is 40 %: the
only published figure that belongs to code which runs.

`baseline` exchanges the choice of entries for one of the two controls in the authors' code: `random` keeps the same
share of entries drawn by lot, `pca` the leading singular directions of ΔW. (There the reduced matrix was padded with
zeros to its old width; here ΔW is projected, as a principal component analysis means it.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm_eval_edit.editors._shared.draws import generator_for
from lm_eval_edit.editors._shared.wrapping import WrappingEditor
from lm_eval_edit.editors.base import EditContext, option
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.weights.delta import Delta, DenseDelta, LowRankDelta, MaskedDelta, SparseDelta
from lm_eval_edit.weights.edited import wide_dtype
from lm_eval_edit.weights.stacked import SliceWise

BASELINES = ("relative", "random", "pca")


@dataclass(frozen=True)
class RectOptions:
    """Hyper-parameters of RECT; those of the editor it regularises are given beside them."""

    over: str = option("the editor whose updates are regularised", default="rome")
    keep: float = option(
        "the share of a matrix's entries (pca: of its singular directions) that is kept", default=0.4, tuned=False
    )
    baseline: str = option(
        "what is kept: relative (largest |ΔW / W|, the method), random entries, or pca (leading directions)",
        default="relative",
    )

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep}: want a share above 0 and at most 1; 0.4 keeps 40 % of the entries")
        if self.baseline not in BASELINES:
            raise ValueError(f"baseline={self.baseline!r}: want {', '.join(BASELINES)}")


class Rect(WrappingEditor):
    """ΔW ← ΔW ⊙ [|ΔW / W| among the top `keep` of the matrix]."""

    name = "rect"
    summary = "another editor's update, thinned out to its relatively largest entries"
    source = "Gu et al. 2024, arXiv 2401.04700"
    Options = RectOptions
    options: RectOptions

    def alter(self, context: EditContext, facts: Sequence[Fact], parameter: str, delta: Delta) -> Delta:
        weight = context.model.get_parameter(parameter).detach()
        generator = generator_for(context.seed, facts, parameter)
        if isinstance(delta, SliceWise):  # each expert's own matrix
            return delta.mapped(lambda place, one: self._thinned(weight[place], one, generator))
        return self._thinned(weight, delta, generator)

    def _thinned(self, weight: Tensor, delta: Delta, generator: torch.Generator) -> Delta:
        if self.options.baseline == "pca":
            return _leading_directions(delta, self.options.keep)
        change = delta.dense(wide_dtype(weight.dtype), weight.device)
        if self.options.baseline == "random":
            score = torch.rand(change.shape, generator=generator).to(change.device)
        else:
            # Zero weights change without bound: they come first, in the order of |ΔW|; zero over zero is no change.
            score = change.abs() / weight.to(change.dtype).abs().clamp(min=1e-30)
        return _masked(delta, change, top(score, self.options.keep))


def top(score: Tensor, share: float) -> Tensor:
    """Which entries are among the largest `share` (rounded to whole entries; equals of the last one are in)."""
    left_out = score.numel() - max(1, round(share * score.numel()))
    return score >= score.flatten().kthvalue(left_out + 1).values


def _masked(delta: Delta, change: Tensor, keep: Tensor) -> Delta:
    """`delta` where `keep` is true, in a form no larger than need be; `change` is its dense form."""
    if isinstance(delta, LowRankDelta):
        return MaskedDelta.masked(delta, keep.to(delta.left.device))
    if isinstance(delta, SparseDelta):
        dim = int(delta.size[2])
        kept = keep.index_select(dim, delta.index.to(keep.device)).to(delta.values.device)
        return SparseDelta(delta.index, delta.values * (kept if dim == 0 else kept.T), delta.size)
    return DenseDelta(change * keep)


def _leading_directions(delta: Delta, share: float) -> Delta:
    """The projection of ΔW onto the leading `share` of its own singular directions, at least one; vectors as they are.

    A share of its rank, not of the matrix's width: an update of rank n has no more than n directions to choose from.
    """
    if len(delta.shape) != 2:
        return delta
    if isinstance(delta, SparseDelta):
        delta = delta.to_low_rank()
    if isinstance(delta, LowRankDelta):
        dtype = delta.left.dtype
        u, s, vh = delta.svd()
    else:
        dtype = delta.tensors()["value"].dtype
        u, s, vh = torch.linalg.svd(delta.tensors()["value"].double(), full_matrices=False)
    rank = int((s > torch.finfo(dtype).eps * max(delta.shape) * s[0]).sum())
    kept = max(1, math.ceil(share * rank))
    return LowRankDelta((u[:, :kept] * s[:kept]).to(dtype), vh[:kept].to(dtype))
