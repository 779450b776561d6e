"""The sum of all updates of one parameter, in the smallest exact form, from the deltas and never from W' − W.

all low rank (ROME, MEMIT, KN, ...)   factors of the true rank, from the SVD of the concatenated ones
some slices, of experts               the same of each slice
anything else                         a dense matrix

What is held does not grow with the number of updates: factors that take more memory than the matrix are added up in a
dense one, in float64, of which the factors of the true rank are found in the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lm_eval_edit.weights.delta import Delta, DenseDelta, LowRankDelta, SparseDelta
from lm_eval_edit.weights.stacked import SliceWise, stack


@dataclass
class DeltaSum:
    """Σ ΔW of one parameter.

    Args:
        shape: The parameter's.
        dtype: What the sum is formed in: float32, or float64 for a float64 model.
        device: Where it is decomposed.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    _factors: list[LowRankDelta] = field(default_factory=list)
    _rank: int = 0  # of the factors held, together
    _dense: Tensor | None = None
    _only_low_rank: bool = True
    _slices: dict[int, DeltaSum] = field(default_factory=dict)

    @property
    def is_low_rank(self) -> bool:
        """Whether every term was low rank, of all slices where they are of some slices."""
        return self._only_low_rank and all(each.is_low_rank for each in self._slices.values())

    def add(self, delta: Delta) -> None:
        """Add one term. The first that is not low rank turns the sum, or a slice's, into a dense matrix."""
        if isinstance(delta, SliceWise) and self._dense is None:
            for place, one in delta.slices():
                of_slice = self._slices.setdefault(place, DeltaSum(self.shape[1:], self.dtype, self.device))
                of_slice.add(one)
            return
        delta = delta.to_low_rank() if isinstance(delta, SparseDelta) else delta
        if isinstance(delta, LowRankDelta) and self._dense is None:
            self._factors.append(delta)
            self._rank += delta.rank
            if self._outgrown():
                self._become_dense(torch.float64)
            return
        if not isinstance(delta, LowRankDelta):
            self._only_low_rank = False
        if self._dense is None:
            self._become_dense(self.dtype)
        assert self._dense is not None, "it has just been made"
        delta.add_to_(self._dense)

    def _outgrown(self) -> bool:
        """Whether float32 factors take more memory than the matrix in float64: then they hardly are of a lower rank."""
        rows, cols = self.shape
        return self._rank * (rows + cols) > 2 * rows * cols

    def _become_dense(self, dtype: torch.dtype) -> None:
        self._dense = torch.zeros(self.shape, dtype=dtype, device=self.device)
        for earlier in self._factors:
            earlier.add_to_(self._dense)
        for place, each in self._slices.items():
            each.delta().add_to_(self._dense[place])
        self._factors.clear()
        self._slices.clear()

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U, S, Vh of the sum of a matrix's updates, without the directions that are rounding of the factors.

        Those are weaker than the strongest by more than the machine epsilon of the factors' own dtype.
        """
        if self._dense is None:
            left = torch.cat([f.left.to(self.device) for f in self._factors], dim=1)
            right = torch.cat([f.right.to(self.device) for f in self._factors], dim=0)
            u, s, vh = LowRankDelta(left, right).svd()
        else:
            u, s, vh = torch.linalg.svd(self._dense, full_matrices=False)
        kept = int((s > torch.finfo(self.dtype).eps * s[0]).sum()) if len(s) else 0
        return u[:, :kept], s[:kept], vh[:kept]

    def delta(self) -> Delta:
        """The sum as one delta, a low-rank one with balanced factors of its true rank; so each slice, where it is of
        some slices."""
        if not self._only_low_rank:
            assert self._dense is not None, "what is not low rank was added to it"
            return DenseDelta(self._dense.to(self.dtype))
        if self._slices:
            return stack({place: self._slices[place].delta() for place in sorted(self._slices)}, self.shape)
        return balanced(*self.svd(), self.dtype)


def sum_deltas(deltas: Iterable[tuple[str, Delta]], model: torch.nn.Module, dtype: torch.dtype) -> dict[str, DeltaSum]:
    """Sums by parameter name."""
    sums: dict[str, DeltaSum] = {}
    for name, delta in tqdm(deltas, desc="summing edits", unit="delta", leave=False):
        if name not in sums:
            sums[name] = DeltaSum(delta.shape, dtype, model.get_parameter(name).device)
        sums[name].add(delta)
    return sums


def balanced(u: Tensor, s: Tensor, vh: Tensor, dtype: torch.dtype) -> LowRankDelta:
    """(U √S)(√S Vh): neither factor is much larger than the other, which keeps both accurate in a narrow dtype."""
    root = s.sqrt()
    return LowRankDelta((u * root).to(dtype).contiguous(), (root[:, None] * vh).to(dtype).contiguous())
