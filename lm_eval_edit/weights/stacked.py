"""Updates of some slices of a 3-D parameter (E, rows, cols), in which a mixture of experts keeps all its experts.

    StackedDelta   slice index[i] gets left[i] @ right[i]   MEMIT and its kin: rank = number of facts
    SlicesDelta    slice index[i] gets values[i]            fine-tuning of chosen experts

A slice is an expert's own matrix in the layout of the parameter: (d, f) in Qwen3-MoE, Mixtral and OLMoE, (f, d) in
gpt-oss. Slices that `index` does not name are not touched: `EditedWeights` neither writes nor copies them, so an update
of a few experts of a layer of gigabytes costs those experts' memory.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lm_eval_edit.weights.delta import Delta, DenseDelta, LowRankDelta


class SliceWise(Delta):
    """An update of some slices along a 3-D parameter's first dimension, each of them a matrix's update of its own.

    Attributes:
        index: (m,) int64, the slices that change, each once.
        size: (3,) int64, the parameter's shape.
    """

    index: Tensor
    size: Tensor

    @abstractmethod
    def at(self, position: int) -> LowRankDelta | DenseDelta:
        """The update of slice `index[position]`, as that of a matrix."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.size.tolist())

    @property
    def places(self) -> list[int]:
        """The slices that change, in the order of `index`."""
        return [int(place) for place in self.index.tolist()]

    def slices(self) -> Iterator[tuple[int, LowRankDelta | DenseDelta]]:
        """Each slice that changes and its update, one after another."""
        for position, place in enumerate(self.places):
            yield place, self.at(position)

    def mapped(self, change: Callable[[int, LowRankDelta | DenseDelta], Delta]) -> StackedDelta | SlicesDelta:
        """The update whose slices are what `change` makes of the slice's number and its update here."""
        return stack({place: change(place, delta) for place, delta in self.slices()}, self.shape)

    def add_to_(self, weight: Tensor) -> None:
        for place, delta in self.slices():
            delta.add_to_(weight[place])

    def norm(self) -> float:
        return math.hypot(*(delta.norm() for _, delta in self.slices()))

    def _check_places(self) -> None:
        kind = type(self).__name__
        if self.size.shape != (3,):
            raise ValueError(f"{kind} wants size (3,), the shape of a 3-D parameter; got {self.size.tolist()}")
        if len(set(self.places)) < len(self.places) or not all(0 <= p < self.shape[0] for p in self.places):
            raise ValueError(
                f"{kind} of a {self.shape} parameter wants an index of its slices 0 to {self.shape[0] - 1}, each once; "
                f"got {self.places}"
            )


@dataclass(frozen=True)
class StackedDelta(SliceWise):
    """ΔW[index[i]] = left[i] @ right[i].

    Args:
        index: (m,) int64, the slices that change, each once.
        left: (m, rows, r); or (1, rows, r), a factor that all slices have in common, as MEMIT's residuals are.
        right: (m, r, cols); or (1, r, cols), likewise.
        size: (3,) int64, the parameter's shape (E, rows, cols).
    """

    index: Tensor
    left: Tensor
    right: Tensor
    size: Tensor
    kind: ClassVar[str] = "stacked"

    def __post_init__(self) -> None:
        self._check_places()
        counts, (_, rows, cols) = (1, len(self.index)), self.shape
        left, right = tuple(self.left.shape), tuple(self.right.shape)
        if not (
            len(left) == len(right) == 3
            and left[0] in counts
            and right[0] in counts
            and (left[1], right[2]) == (rows, cols)
            and left[2] == right[1]
        ):
            raise ValueError(
                f"StackedDelta of {len(self.index)} slices of a {self.shape} parameter wants left "
                f"({len(self.index)} or 1, {rows}, r) and right ({len(self.index)} or 1, r, {cols}) of one rank r; "
                f"got {left} and {right}"
            )

    def at(self, position: int) -> LowRankDelta:
        left, right = (t[position if len(t) > 1 else 0] for t in (self.left, self.right))
        return LowRankDelta(left, right)

    @property
    def rank(self) -> int:
        """Of each slice."""
        return self.left.shape[2]

    def tensors(self) -> dict[str, Tensor]:
        return {"index": self.index, "left": self.left, "right": self.right, "size": self.size}


@dataclass(frozen=True)
class SlicesDelta(SliceWise):
    """ΔW[index[i]] = values[i].

    Args:
        index: (m,) int64, the slices that change, each once.
        values: (m, rows, cols).
        size: (3,) int64, the parameter's shape (E, rows, cols).
    """

    index: Tensor
    values: Tensor
    size: Tensor
    kind: ClassVar[str] = "slices"

    def __post_init__(self) -> None:
        self._check_places()
        wanted = (len(self.index), *self.shape[1:])
        if tuple(self.values.shape) != wanted:
            raise ValueError(
                f"SlicesDelta of {wanted[0]} slices of a {self.shape} parameter wants values of shape {wanted}; "
                f"got {tuple(self.values.shape)}"
            )

    def at(self, position: int) -> DenseDelta:
        return DenseDelta(self.values[position])

    def tensors(self) -> dict[str, Tensor]:
        return {"index": self.index, "values": self.values, "size": self.size}


def _dtype(delta: Delta) -> torch.dtype:
    return next(tensor.dtype for tensor in delta.tensors().values() if tensor.is_floating_point())


def stack(slices: Mapping[int, Delta], shape: Sequence[int]) -> StackedDelta | SlicesDelta:
    """One update of some slices of a parameter, of what each of them gets.

    Args:
        slices: By the slice's number; of low rank all, of which the lower are padded with zeros, or else made dense.
        shape: (E, rows, cols), the parameter's.
    """
    index, size = torch.tensor(list(slices), dtype=torch.int64), torch.tensor(list(shape))
    low = [delta for delta in slices.values() if isinstance(delta, LowRankDelta)]
    if len(low) < len(slices):
        dense = [delta.dense(_dtype(delta)) for delta in slices.values()]
        return SlicesDelta(index, torch.stack(dense), size)
    rank = max((delta.rank for delta in low), default=0)
    left = [nn.functional.pad(delta.left, (0, rank - delta.rank)) for delta in low]
    right = [nn.functional.pad(delta.right, (0, 0, 0, rank - delta.rank)) for delta in low]
    if not low:
        return StackedDelta(index, torch.zeros(0, shape[1], 0), torch.zeros(0, 0, shape[2]), size)
    return StackedDelta(index, torch.stack(left), torch.stack(right), size)


def expert_update(transposed: bool, index: Tensor, inputs: Tensor, outputs: Tensor, experts: int) -> StackedDelta:
    """The delta that adds `outputs[i] @ inputs[i].T` to the map of expert `index[i]`; `delta.linear_update` of many.

    Args:
        transposed: True where an expert's slice is (in, out), as in gpt-oss; False where it is (out, in).
        index: (m,) the experts.
        inputs: (m or 1, in, r), the directions in each expert's input space.
        outputs: (m or 1, out, r), what each is sent to.
        experts: E, how many the parameter holds.
    """
    left, right = (inputs, outputs.mT) if transposed else (outputs, inputs.mT)
    size = torch.tensor([experts, left.shape[1], right.shape[2]])
    return StackedDelta(index.to(torch.int64), left.contiguous(), right.contiguous(), size)
