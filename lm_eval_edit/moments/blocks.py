"""Matrices of key space that are block-diagonal, one block for each expert of a mixture, and solves with them.

What a solve writes as L y = x is the same whether L is one matrix or many; an expert whose part of x is zero is not
looked at, and its part of y is zero to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class BlockDiagonal:
    """diag(B_1, …, B_E), blocks (rows_e, columns_e).

    Args:
        blocks: B_1 to B_E, on one device.
    """

    def __init__(self, blocks: Sequence[Tensor]):
        self.blocks = list(blocks)

    @property
    def shape(self) -> tuple[int, int]:
        return sum(b.shape[0] for b in self.blocks), sum(b.shape[1] for b in self.blocks)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def T(self) -> BlockDiagonal:
        return BlockDiagonal([block.T for block in self.blocks])

    def to(self, device: torch.device) -> BlockDiagonal:
        return BlockDiagonal([block.to(device) for block in self.blocks])

    def __matmul__(self, columns: Tensor) -> Tensor:
        """(rows, n) from (columns, n)."""
        return self.each(lambda block, part: block @ part, columns)

    def each(self, of: Callable[[Tensor, Tensor], Tensor], columns: Tensor) -> Tensor:
        """`of` each block and its part of the columns, put together; zeros for zeros."""
        parts = []
        split = columns.split([block.shape[1] for block in self.blocks])
        each_used = torch.stack([part.any() for part in split]).tolist()  # one wait for a device, not one for each
        for block, part, used in zip(self.blocks, split, each_used, strict=True):
            parts.append(of(block, part) if used else part.new_zeros(block.shape[0], part.shape[1]))
        return torch.cat(parts)


#: A matrix of key space, whole or block by block.
Matrix = Tensor | BlockDiagonal


def lower_solve(factor: Matrix, columns: Tensor) -> Tensor:
    """L⁻¹ x for a lower triangular L."""
    return _each(lambda block, part: torch.linalg.solve_triangular(block, part, upper=False), factor, columns)


def upper_solve(factor: Matrix, columns: Tensor) -> Tensor:
    """L⁻ᵀ x for a lower triangular L."""
    return _each(lambda block, part: torch.linalg.solve_triangular(block.T, part, upper=True), factor, columns)


def cholesky_solve(factor: Matrix, columns: Tensor) -> Tensor:
    """(L Lᵀ)⁻¹ x for a lower triangular L."""
    return _each(lambda block, part: torch.cholesky_solve(part, block), factor, columns)


def _each(of: Callable[[Tensor, Tensor], Tensor], factor: Matrix, columns: Tensor) -> Tensor:
    return factor.each(of, columns) if isinstance(factor, BlockDiagonal) else of(factor, columns)


def filled(moment: Tensor, picks: Tensor) -> Tensor:
    """C of a mixture's experts (E, f, f), those that were picked too rarely shrunk towards all experts' mean.

    C_e = (1/N) Σ g² k kᵀ over the tokens that picked e, of N in all. An expert that n_e < 10 f tokens picked gets
    κ_e = f − n_e / 10 more, that use every direction alike and as much as the mean pick of any expert does:

        C_e ← C_e + (κ_e / N) τ I,   τ = Σ_e tr(N C_e) / (f Σ_e n_e)

    So one that no token picked counts as though it had been picked f times, one with f tokens is nine parts in nineteen
    its prior, and from 10 f tokens on nothing is added. The experts' directions are their own; they share a scale.

    Args:
        moment: (E, f, f).
        picks: (E,) n_e.
    """
    f = moment.shape[-1]
    more = (f - picks.to(moment) / 10).clamp(min=0)
    if not bool(more.any()):
        return moment
    scale = moment.diagonal(dim1=-2, dim2=-1).sum() / (f * picks.sum()).clamp(min=1).to(moment)  # τ / N
    out = moment.clone()
    out.diagonal(dim1=-2, dim2=-1).add_((more * scale)[:, None])
    return out
