"""The control: a random update of the same size and rank as another editor's.

Editing hurts a model's other abilities; so might any change of that size. `editor=random,like=rome` changes the same
parameters, in the same operations, by updates with the same singular values but random directions. What it costs is the
price of a change of that size; what `rome` costs beyond it is the price of that edit.

    low-rank ΔW = U S Vᵀ   U' S V'ᵀ with U', V' drawn uniformly among orthonormal frames
    some rows or columns   the same ones, each in a random direction with its old norm
    some entries           the same entries of such a low-rank product, scaled to the old norm
    dense                  Gaussian entries, scaled to the old norm
    experts of a mixture   each expert's own update so, of the same experts

Drawn from the edit seed, the operation's fact ids and the parameter's name, and from nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm_eval_edit.editors._shared.draws import generator_for
from lm_eval_edit.editors._shared.wrapping import WrappingEditor
from lm_eval_edit.editors.base import EditContext, option
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.weights.delta import Delta, DenseDelta, LowRankDelta, MaskedDelta, SparseDelta
from lm_eval_edit.weights.stacked import SliceWise


@dataclass(frozen=True)
class RandomOptions:
    """Which editor is imitated; its hyper-parameters are given beside this one."""

    like: str = option("the editor whose updates are imitated in size, rank and place", default="rome")


class Random(WrappingEditor):
    """ΔW ← a random matrix with ΔW's singular values, so of its rank and of its Frobenius and spectral norm."""

    name = "random"
    summary = "the control: random updates of the rank and norm of another editor's"
    source = "a control of this package"
    Options = RandomOptions
    options: RandomOptions
    chooser = "like"

    def alter(self, context: EditContext, facts: Sequence[Fact], parameter: str, delta: Delta) -> Delta:
        return imitation(delta, generator_for(context.seed, facts, parameter))


def imitation(delta: Delta, generator: torch.Generator) -> Delta:
    """A random delta of the same kind, shape, rank and Frobenius norm."""
    if isinstance(delta, SliceWise):
        return delta.mapped(lambda place, one: imitation(one, generator))
    if isinstance(delta, LowRankDelta):
        return _rotated(delta, generator)
    if isinstance(delta, MaskedDelta):
        product = _rotated(LowRankDelta(delta.left, delta.right), generator)
        drawn = MaskedDelta(product.left, product.right, delta.mask)
        size = drawn.norm()
        return MaskedDelta(drawn.left * (delta.norm() / size if size else 0.0), drawn.right, drawn.mask)
    if isinstance(delta, SparseDelta):
        values = _gaussian(delta.values, generator)
        scale = delta.values.norm(dim=1, keepdim=True) / values.norm(dim=1, keepdim=True)
        return SparseDelta(delta.index, values * scale, delta.size)
    value = delta.dense(next(iter(delta.tensors().values())).dtype)
    noise = _gaussian(value, generator)
    return DenseDelta(noise * (value.norm() / noise.norm()))


def _rotated(delta: LowRankDelta, generator: torch.Generator) -> LowRankDelta:
    s = delta.svd()[1].to(delta.left.dtype)
    rows, cols = delta.shape
    left, right = (_frame(size, len(s), delta.left, generator) for size in (rows, cols))
    return LowRankDelta(left * s, right.T.contiguous())


def _frame(size: int, count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """(size, count) orthonormal columns, uniformly distributed: the Q of a Gaussian matrix with positive diagonal R."""
    q, r = torch.linalg.qr(torch.randn(size, count, generator=generator, dtype=torch.float64))
    frame: Tensor = q * r.diagonal().sign()
    return frame.to(device=like.device, dtype=like.dtype)


def _gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    # Drawn on the CPU, so that the numbers do not depend on the device.
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(device=like.device, dtype=like.dtype)
