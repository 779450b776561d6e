"""The only place that writes weights: apply deltas, restore the originals, say what the weights are.

`W_n = W_0 + Σ Δ_i` is formed in float32 (float64 for float64 models) and cast to the model's dtype once. Adding edits
one by one in bfloat16 would lose the small ones; subtracting them again would not give W_0 back, so restore copies it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lm_eval_edit._support.files import hash_json, hash_tensor
from lm_eval_edit.weights.delta import Delta


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype edits are computed in for a model of `dtype`: float32 at least, never narrower than the model."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass
class _Touched:
    """One parameter that edits have reached: its original and, for half-precision models, the exact running sum."""

    parameter: nn.Parameter
    original: Tensor
    master: Tensor | None  # float32 W_n; None when the parameter itself is wide enough to hold the sum


class _Changes(Mapping[str, tuple[Tensor, Tensor]]):
    """See `EditedWeights.changes`."""

    def __init__(self, touched: Mapping[str, _Touched]):
        self._touched = touched

    @torch.no_grad()
    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        t = self._touched[name]
        exact = t.parameter.data if t.master is None else t.master
        original = t.original.to(exact.dtype)
        return original, exact - original

    def __iter__(self) -> Iterator[str]:
        return iter(self._touched)

    def __len__(self) -> int:
        return len(self._touched)


@dataclass
class EditedWeights:
    """The weights of one model under editing.

    Args:
        model: Its parameters are changed by `apply` and put back, bit for bit, by `restore`.
    """

    model: nn.Module
    _touched: dict[str, _Touched] = field(default_factory=dict)

    def _touch(self, name: str) -> _Touched:
        if name not in self._touched:
            parameter = self.model.get_parameter(name)
            wide = wide_dtype(parameter.dtype)
            master = None if parameter.dtype == wide else parameter.detach().to(wide)
            self._touched[name] = _Touched(parameter, parameter.detach().clone(), master)
        return self._touched[name]

    @torch.no_grad()
    def apply(self, deltas: Mapping[str, Delta]) -> None:
        """Add one operation's deltas to the weights.

        Raises:
            ValueError: a delta's shape is not its parameter's. Nothing has been changed then.
        """
        for name, delta in deltas.items():
            shape = tuple(self.model.get_parameter(name).shape)
            if delta.shape != shape:
                raise ValueError(f"the delta for {name} has shape {delta.shape}, the parameter {shape}")
        for name, delta in deltas.items():
            touched = self._touch(name)
            if touched.master is None:
                delta.add_to_(touched.parameter.data)
            else:
                delta.add_to_(touched.master)
                touched.parameter.data.copy_(touched.master)

    @torch.no_grad()
    def restore(self) -> None:
        """Put every touched parameter back to its original bits and forget it."""
        for touched in self._touched.values():
            touched.parameter.data.copy_(touched.original)
        self._touched.clear()

    def changes(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Per touched parameter W₀ and W_n − W₀, in float32 (float64 for float64 models).

        Each pair is made when it is asked for, from the weights as they stand then, and is not kept: a caller that
        looks at none of them, or at one after another, does not take the memory of all.
        """
        return _Changes(self._touched)

    @property
    def touched(self) -> list[str]:
        """Names of the parameters changed so far."""
        return list(self._touched)

    @torch.no_grad()
    def report(self) -> dict[str, dict[str, float]]:
        """Per touched parameter: ‖ΔW‖, ‖W_0‖, their ratio, the largest |ΔW|, and the cast's rounding loss.

        `rounding_loss` = ‖cast(W_n) − W_n‖ / ‖W_n − W_0‖: the share of the edit that the model's dtype could not hold.
        """
        out = {}
        for name, (original, change) in self.changes().items():
            t = self._touched[name]
            norm, base = float(change.norm()), float(original.norm())
            lost = 0.0 if t.master is None else float((t.parameter.data.to(change.dtype) - t.master).norm())
            out[name] = {
                "delta_norm": norm,
                "weight_norm": base,
                "relative_norm": norm / base if base else float("inf"),
                "delta_max": float(change.abs().max()),
                "rounding_loss": lost / norm if norm else 0.0,
            }
        return out

    @torch.no_grad()
    def problems(self) -> list[str]:
        """What a guard must know after editing: parameters that are not finite, parameters that did not change."""
        out = []
        for name, t in self._touched.items():
            if not bool(torch.isfinite(t.parameter.data).all()):
                out.append(f"{name} holds values that are not finite")
            elif torch.equal(t.parameter.data, t.original):
                out.append(f"{name} did not change")
        return out

    def fingerprint(self, base: str) -> str:
        """A hash of the model as it stands: of `base` (the unedited model's) and the bits of every touched parameter.

        It is `base` itself while nothing is touched, or after `restore`.
        """
        if not self._touched:
            return base
        return hash_json([base, {name: hash_tensor(t.parameter.data) for name, t in sorted(self._touched.items())}])


@contextlib.contextmanager
def temporarily_applied(model: nn.Module, deltas: Mapping[str, Delta]) -> Iterator[None]:
    """Within the block the model has the deltas; afterwards it has its own bits again.

    For editors whose later layers depend on the earlier ones (MEMIT); they stay pure as seen from outside.
    """
    weights = EditedWeights(model)
    try:
        weights.apply(deltas)
        yield
    finally:
        weights.restore()


_CHUNK = 1 << 22  # elements hashed at a time: bounds the int64 copies to 32 MiB each


def model_fingerprint(model: nn.Module) -> str:
    """A hash of all parameters' names, shapes, dtypes and bits, cheap enough for a model of many gigabytes.

    It detects other weights, not a forger.
    """
    return hash_json([sums for _, sums in sorted(parameter_sums(model).items())])


@torch.no_grad()
def parameter_sums(model: nn.Module) -> dict[str, list[Any]]:
    """What `model_fingerprint` hashes: per parameter its name, shape, dtype, and a sum over its bits.

    The bit patterns are summed with odd position-dependent weights modulo 2⁶⁴ on the parameter's own device: exact
    integer arithmetic, so the same on every device and in every order, and every element counts.
    """
    sums = {}
    for name, parameter in model.named_parameters():
        data = parameter.data
        total = 0
        bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[data.element_size()]
        flat = data.contiguous().flatten().view(bits)
        for start in range(0, flat.numel(), _CHUNK):
            chunk = flat[start : start + _CHUNK].to(torch.int64)
            position = torch.arange(start, start + chunk.numel(), device=chunk.device, dtype=torch.int64)
            total = (total + int((chunk * (position * 0x9E3779B97F4A7C1 + 1 | 1)).sum())) % (1 << 64)
        sums[name] = [name, list(parameter.shape), str(parameter.dtype), total]
    return sums
