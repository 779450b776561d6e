"""The only place that writes weights: apply deltas, restore the originals, say what the weights are.

`W_n = W_0 + Σ Δ_i` is formed in float32 (float64 for float64 models) and cast to the model's dtype once. Adding edits
one by one in bfloat16 would lose the small ones; subtracting them again would not give W_0 back, so restore copies it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lm_eval_edit.weights.carried import note_applied, note_restored
from lm_eval_edit.weights.delta import Delta
from lm_eval_edit.weights.fingerprint import NEWEST, hash_of_json, model_fingerprint, tensor_hash

__all__ = ["EditedWeights", "model_fingerprint", "temporarily_applied", "wide_dtype"]


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype edits are computed in for a model of `dtype`: float32 at least, never narrower than the model."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass
class _Touched:
    """One parameter that edits have reached: its original and, for half-precision models, the exact running sum."""

    parameter: nn.Parameter
    original: Tensor
    master: Tensor | None  # float32 W_n; None when the parameter itself is wide enough to hold the sum
    hashes: dict[str, str] = field(default_factory=dict)  # of its bits as `apply` left them, by the hash's name


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
        model: Its parameters are changed by `apply` and put back, bit for bit, by `restore`. As long as it has edits it
            says so (`carried.carried_by`).
        owner: Whose edits they are, for whoever finds the model.
    """

    model: nn.Module
    owner: Any = field(default=None, repr=False, compare=False)
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
        if deltas:
            note_applied(self.model, self)
        for name, delta in deltas.items():
            touched = self._touch(name)
            touched.hashes.clear()
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
        note_restored(self.model, self)

    @torch.no_grad()
    def copied(self, names: Iterable[str]) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Some touched parameters as they stand, for `put_back`; each takes its memory once more."""
        found = {name: self._touched[name] for name in names}
        return {
            name: (t.parameter.detach().clone(), None if t.master is None else t.master.clone())
            for name, t in found.items()
        }

    @torch.no_grad()
    def put_back(self, copies: Mapping[str, tuple[Tensor, Tensor | None]]) -> None:
        """Bring parameters back to what `copied` saw, bit for bit."""
        for name, (value, master) in copies.items():
            touched = self._touched[name]
            touched.hashes.clear()
            touched.parameter.data.copy_(value)
            if touched.master is not None and master is not None:
                touched.master.copy_(master)

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

    def fingerprint(self, base: str, hash_name: str = NEWEST, unseen: bool = True) -> str:
        """A hash of the model as it stands: of `base` (the unedited model's) and the bits of every touched parameter.

        It is `base` itself while nothing is touched, or after `restore`.

        Args:
            base: The fingerprint of the unedited model.
            hash_name: Of the hash, `base`'s own.
            unseen: Whether to look at every touched parameter, whatever has changed it. False hashes those that
                `apply` has reached since they were hashed last, and takes the others to be as they were.
        """
        if not self._touched:
            return base
        for touched in self._touched.values():
            if unseen or hash_name not in touched.hashes:
                touched.hashes[hash_name] = tensor_hash(touched.parameter.data, hash_name)
        return hash_of_json([base, {name: t.hashes[hash_name] for name, t in sorted(self._touched.items())}], hash_name)


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
