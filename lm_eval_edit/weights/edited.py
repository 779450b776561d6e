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
from lm_eval_edit.weights.fingerprint import NEWEST, hash_of_json, model_fingerprint
from lm_eval_edit.weights.touched import Copies, Touched, wide_dtype

__all__ = ["EditedWeights", "model_fingerprint", "temporarily_applied", "wide_dtype"]


class _Changes(Mapping[str, tuple[Tensor, Tensor]]):
    """See `EditedWeights.changes`."""

    def __init__(self, touched: Mapping[str, Touched]):
        self._touched = touched

    @torch.no_grad()
    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        return self._touched[name].change()

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
    _touched: dict[str, Touched] = field(default_factory=dict)

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
            if name not in self._touched:
                self._touched[name] = Touched(self.model.get_parameter(name))
            self._touched[name].add(delta)

    @torch.no_grad()
    def restore(self) -> None:
        """Put every touched parameter back to its original bits and forget it."""
        for touched in self._touched.values():
            touched.restore()
        self._touched.clear()
        note_restored(self.model, self)

    @torch.no_grad()
    def copied(self, names: Iterable[str]) -> dict[str, Copies]:
        """Some touched parameters as they stand, for `put_back`; what is touched of each takes its memory once more."""
        return {name: self._touched[name].copies() for name in names}

    @torch.no_grad()
    def put_back(self, copies: Mapping[str, Copies]) -> None:
        """Bring parameters back to what `copied` saw, bit for bit."""
        for name, kept in copies.items():
            self._touched[name].put_back(kept)

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
    def report(self) -> dict[str, dict[str, Any]]:
        """Per touched parameter: ‖ΔW‖, ‖W_0‖, their ratio, the largest |ΔW|, and the cast's rounding loss.

        `rounding_loss` = ‖cast(W_n) − W_n‖ / ‖W_n − W_0‖: the share of the edit that the model's dtype could not hold.
        Where edits have reached some slices of a 3-D parameter (experts of a mixture), `slices` has the same figures of
        each, by its number; those beside it are of the whole parameter.
        """
        return {name: touched.figures() for name, touched in self._touched.items()}

    @torch.no_grad()
    def problems(self) -> list[str]:
        """What a guard must know after editing: parameters that are not finite, parameters that did not change."""
        found = {name: touched.problem() for name, touched in self._touched.items()}
        return [f"{name} {problem}" for name, problem in found.items() if problem]

    def fingerprint(self, base: str, hash_name: str = NEWEST, unseen: bool = True) -> str:
        """A hash of the model as it stands: of `base` (the unedited model's) and the bits of every touched parameter
        (of its touched slices, where edits have reached no more of it).

        It is `base` itself while nothing is touched, or after `restore`.

        Args:
            base: The fingerprint of the unedited model.
            hash_name: Of the hash, `base`'s own.
            unseen: Whether to look at every touched parameter, whatever has changed it. False hashes those that
                `apply` has reached since they were hashed last, and takes the others to be as they were.
        """
        if not self._touched:
            return base
        hashes = {name: touched.hash(hash_name, unseen) for name, touched in sorted(self._touched.items())}
        return hash_of_json([base, hashes], hash_name)


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
