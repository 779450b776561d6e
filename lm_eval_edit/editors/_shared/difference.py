"""The smallest delta that says how one matrix became another, for editors whose own factors are out of reach."""

from __future__ import annotations

import torch
from torch import Tensor

from lm_eval_edit.weights.delta import Delta, DenseDelta, LowRankDelta, SparseDelta
from lm_eval_edit.weights.edited import wide_dtype

_FIRST_RANK = 16
_ROUND_OFF = 12  # eps, for the rounding of the sum and of the product itself (largest seen: 10)
_SLACK = 1e-3  # a difference that is not well above the round-off of the weights is kept as it is


@torch.no_grad()
def difference(before: Tensor, after: Tensor) -> Delta:
    """`after` − `before` as a delta.

    A few changed rows or columns become a `SparseDelta`, exactly. A difference of low rank, but for rounding of
    `after`, becomes a `LowRankDelta`: `after` = round(`before` + Δ), so what lies a few eps · ‖after‖ from low rank
    cannot be told from it. All else is dense and exact.

    Args:
        before, after: Of one shape, dtype and device.

    Returns:
        A delta in float32, or float64 for float64 tensors.
    """
    wide = wide_dtype(after.dtype)
    change = after.double() - before.double()
    if change.ndim != 2:
        return DenseDelta(change.to(wide))
    for dim in (0, 1):
        index = change.ne(0).any(dim=1 - dim).nonzero()[:, 0]
        if 2 * len(index) <= change.shape[dim]:
            values = change.index_select(dim, index)
            values = (values if dim == 0 else values.T).to(wide).contiguous()
            return SparseDelta(index, values, torch.tensor([*change.shape, dim]))
    noise = float(_ROUND_OFF * torch.finfo(after.dtype).eps * after.double().norm())
    return _low_rank(change, noise, wide) or DenseDelta(change.to(wide))


def _low_rank(change: Tensor, noise: float, dtype: torch.dtype) -> LowRankDelta | None:
    """`change` up to `noise` (a Frobenius norm) as a product of smaller size, or None if there is none.

    A randomised range finder (Halko et al. 2011, algorithm 4.1) with growing rank, so that a rank-one edit of a large
    matrix costs a few products and not a full decomposition. The drawn numbers do not show in the result.
    """
    rows, columns = change.shape
    if noise > _SLACK * float(change.norm()):
        return None
    generator = torch.Generator().manual_seed(0)
    rank = _FIRST_RANK
    while rank * (rows + columns) < rows * columns:
        probes = torch.randn(columns, rank, generator=generator, dtype=torch.float64).to(change.device)
        basis = torch.linalg.qr(change @ probes).Q  # (rows, rank)
        middle = basis.T @ change
        missed = float((change - basis @ middle).norm())
        if missed <= noise:
            u, s, vh = torch.linalg.svd(middle, full_matrices=False)
            # dropped[r] = what is lost when r singular values are kept
            dropped = torch.cat([s.square().flip(0).cumsum(0).flip(0), s.new_zeros(1)]) + missed**2
            kept = max(1, int((dropped > noise**2).sum()))
            left = (basis @ u[:, :kept]) * s[:kept]
            return LowRankDelta(left.to(dtype).contiguous(), vh[:kept].to(dtype).contiguous())
        rank *= 4
    return None
