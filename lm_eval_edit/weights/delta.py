"""What an edit changes, as a value: the update ΔW of one parameter, kept in the smallest exact form.

An editor returns `{parameter name: Delta}` and never touches the model. Every delta is in the parameter's *own* layout:
`W_new = W + delta.dense()`, so GPT-2's Conv1D (f, d) and nn.Linear (d, f) need no special case after the editor.

    LowRankDelta   left (rows, r) @ right (r, cols)   ROME, MEMIT and their kin: rank = number of facts
    SparseDelta    some rows or columns               KN: a few neurons get a new value vector
    MaskedDelta    some entries of a low-rank product RECT: the entries that matter, one bit for each entry
    DenseDelta     the full matrix or vector          fine-tuning

`stacked` has what changes some slices of a 3-D parameter, in which a mixture keeps its experts.

Factors are float32, or float64 for float64 models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

D = TypeVar("D", bound="Delta")


class Delta(ABC):
    """An additive update of one parameter, in that parameter's layout."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter this delta belongs to."""

    @abstractmethod
    def add_to_(self, weight: Tensor) -> None:
        """`weight += ΔW` in place, the product formed in `weight`'s dtype (float32 or float64) and on its device."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that make up this delta, by field name; `type(self)(**tensors)` gives it back."""

    def dense(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """ΔW as a full tensor. Costs a parameter's memory: meant for checks and small models."""
        out = torch.zeros(self.shape, dtype=dtype, device=device)
        self.add_to_(out)
        return out

    def norm(self) -> float:
        """Frobenius norm ‖ΔW‖."""
        return float(self.dense(torch.float64).norm())

    @property
    def rank(self) -> int | None:
        """An upper bound on the rank that is known without a decomposition; None when nothing is known."""
        return None

    def to(self: D, device: torch.device | str) -> D:
        """The same delta on another device."""
        return type(self)(**{name: tensor.to(device) for name, tensor in self.tensors().items()})


@dataclass(frozen=True)
class LowRankDelta(Delta):
    """ΔW = left @ right.

    Args:
        left: (rows, r).
        right: (r, cols).
    """

    left: Tensor
    right: Tensor
    kind: ClassVar[str] = "low_rank"

    def __post_init__(self) -> None:
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != self.right.shape[0]:
            raise ValueError(
                f"LowRankDelta wants left (rows, r) and right (r, cols) of one rank r; "
                f"got {tuple(self.left.shape)} and {tuple(self.right.shape)}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.left.shape[0], self.right.shape[1])

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    def add_to_(self, weight: Tensor) -> None:
        # Row by row, as they are read from a file: a GPU's product of transposed factors may round differently.
        left, right = (t.to(device=weight.device, dtype=weight.dtype).contiguous() for t in (self.left, self.right))
        weight.addmm_(left, right)

    def tensors(self) -> dict[str, Tensor]:
        return {"left": self.left, "right": self.right}

    def norm(self) -> float:
        # ‖LR‖² = tr((LᵀL)(RRᵀ)): r x r work instead of rows x cols.
        left, right = self.left.double(), self.right.double()
        return float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0).sqrt())

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U (rows, k), S (k,), Vh (k, cols) of ΔW in float64, k = min(rows, cols, r).

        Two QR decompositions and the SVD of the small middle; never forms ΔW.
        """
        q_left, r_left = torch.linalg.qr(self.left.double())
        q_right, r_right = torch.linalg.qr(self.right.double().T)
        u, s, vh = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
        return q_left @ u, s, vh @ q_right.T

    def compress(self, tolerance: float = 0.0) -> LowRankDelta:
        """The same ΔW with the smallest rank that drops only singular values of at most `tolerance` times the first."""
        u, s, vh = self.svd()
        kept = int((s > max(tolerance, 1e-15) * s[0].clamp(min=torch.finfo(s.dtype).tiny)).sum())
        return LowRankDelta((u[:, :kept] * s[:kept]).to(self.left.dtype), vh[:kept].to(self.right.dtype))

    def to_lora(self, transposed: bool) -> tuple[Tensor, Tensor]:
        """(lora_A (r, in), lora_B (out, r)) with lora_B @ lora_A equal to ΔW as a map from in to out (LoRA, alpha = r).

        Args:
            transposed: True for a Conv1D parameter (in, out), False for nn.Linear (out, in).
        """
        return (self.left.T, self.right.T) if transposed else (self.right, self.left)


@dataclass(frozen=True)
class SparseDelta(Delta):
    """ΔW that is zero but for some slices along one dimension: `W.select(dim, index[i]) += values[i]`.

    Args:
        index: (n,) int64, the rows (dim 0) or columns (dim 1) that change.
        values: (n, other dimension), what is added to each.
        size: (3,) int64: rows, cols and the dimension `dim` of the parameter.
    """

    index: Tensor
    values: Tensor
    size: Tensor
    kind: ClassVar[str] = "sparse"

    def __post_init__(self) -> None:
        rows, cols, dim = self.size.tolist()
        if self.values.shape != (len(self.index), (rows, cols)[1 - dim]):
            raise ValueError(
                f"SparseDelta of a ({rows}, {cols}) parameter along dimension {dim} wants values of shape "
                f"({len(self.index)}, {(rows, cols)[1 - dim]}); got {tuple(self.values.shape)}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.size[:2].tolist())

    @property
    def rank(self) -> int:
        return len(self.index)

    def add_to_(self, weight: Tensor) -> None:
        dim = int(self.size[2])
        values = self.values.to(device=weight.device, dtype=weight.dtype)
        weight.index_add_(dim, self.index.to(weight.device), values if dim == 0 else values.T)

    def tensors(self) -> dict[str, Tensor]:
        return {"index": self.index, "values": self.values, "size": self.size}

    def to_low_rank(self) -> LowRankDelta:
        """The same ΔW as a product: unit vectors that name the slices, and their values."""
        rows, cols, dim = self.size.tolist()
        units = torch.nn.functional.one_hot(self.index.long(), (rows, cols)[dim]).to(self.values.dtype)
        return LowRankDelta(units.T, self.values) if dim == 0 else LowRankDelta(self.values.T, units)


_BLOCK = 1 << 22  # entries of a masked product formed at a time


@dataclass(frozen=True)
class MaskedDelta(Delta):
    """ΔW = mask ⊙ (left @ right): some entries of a low-rank product, one bit stored for each entry of the parameter.

    At 40 % of a (11008, 4096) matrix's entries: 5.6 MB, where index and value of each entry take 216 MB and the dense
    matrix takes 180 MB.

    Args:
        left: (rows, r).
        right: (r, cols).
        mask: (rows, ⌈cols / 8⌉) uint8; bit b of byte c is the entry of column 8 c + b. `masked` packs it.
    """

    left: Tensor
    right: Tensor
    mask: Tensor
    kind: ClassVar[str] = "masked"

    def __post_init__(self) -> None:
        LowRankDelta(self.left, self.right)  # says what is wrong with the factors
        wanted = (self.left.shape[0], -(-self.right.shape[1] // 8))
        if self.mask.shape != wanted or self.mask.dtype != torch.uint8:
            raise ValueError(
                f"MaskedDelta of shape {self.shape} wants a uint8 mask of shape {wanted}; "
                f"got {self.mask.dtype} of shape {tuple(self.mask.shape)}"
            )

    @classmethod
    def masked(cls, delta: LowRankDelta, keep: Tensor) -> MaskedDelta:
        """The entries of `delta` where the boolean matrix `keep` (rows, cols) is true."""
        bits = torch.nn.functional.pad(keep.to(torch.uint8), (0, -keep.shape[1] % 8)).view(len(keep), -1, 8)
        weights = 1 << torch.arange(8, dtype=torch.uint8, device=keep.device)
        return cls(delta.left, delta.right, (bits * weights).sum(-1, dtype=torch.uint8))

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.left.shape[0], self.right.shape[1])

    def keep(self, rows: slice = slice(None)) -> Tensor:
        """The mask as booleans (rows, cols)."""
        packed = self.mask[rows]
        shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
        return ((packed[..., None] >> shifts) & 1).bool().flatten(1)[:, : self.shape[1]]

    def _blocks(self, dtype: torch.dtype, device: torch.device | str) -> Iterator[tuple[slice, Tensor]]:
        """ΔW some rows at a time."""
        left, right = (t.to(device=device, dtype=dtype).contiguous() for t in (self.left, self.right))
        step = max(1, _BLOCK // self.shape[1])
        for start in range(0, self.shape[0], step):
            rows = slice(start, start + step)
            yield rows, (left[rows] @ right).masked_fill_(~self.keep(rows).to(device), 0)

    def add_to_(self, weight: Tensor) -> None:
        for rows, block in self._blocks(weight.dtype, weight.device):
            weight[rows] += block

    def norm(self) -> float:
        squares = [block.square().sum() for _, block in self._blocks(torch.float64, self.left.device)]
        return float(torch.stack(squares).sum().sqrt())

    def tensors(self) -> dict[str, Tensor]:
        return {"left": self.left, "right": self.right, "mask": self.mask}


@dataclass(frozen=True)
class DenseDelta(Delta):
    """ΔW as it is, for updates without structure (fine-tuning) and for vectors.

    Args:
        value: the parameter's own shape.
    """

    value: Tensor
    kind: ClassVar[str] = "dense"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def add_to_(self, weight: Tensor) -> None:
        weight.add_(self.value.to(device=weight.device, dtype=weight.dtype))

    def tensors(self) -> dict[str, Tensor]:
        return {"value": self.value}

    def norm(self) -> float:
        return float(self.value.double().norm())


def linear_update(weight_is_transposed: bool, inputs: Tensor, outputs: Tensor) -> LowRankDelta:
    """The delta that adds `outputs @ inputs.T` to a linear map, in the layout of its weight.

    Args:
        weight_is_transposed: True for Conv1D, whose weight is (in, out); False for nn.Linear, (out, in).
        inputs: (in, r), the directions in input space.
        outputs: (out, r), what each direction is sent to.
    """
    left, right = (inputs, outputs.T) if weight_is_transposed else (outputs, inputs.T)
    return LowRankDelta(left.contiguous(), right.contiguous())
