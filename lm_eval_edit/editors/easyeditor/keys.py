"""The keys of earlier operations as EasyEdit's methods have them: Σ K Kᵀ, of which each leaves its own part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lm_eval_edit.editors._shared.difference import difference
from lm_eval_edit.editors._shared.history import History
from lm_eval_edit.weights.delta_files import KINDS


def earlier_keys(history: Sequence[Mapping[str, Tensor]]) -> Tensor | None:
    """(layers, f, f) Σ K Kᵀ of earlier operations, which AlphaEdit and SPHERE keep in a module global."""

    def add(total: Tensor | None, state: Mapping[str, Tensor]) -> Tensor | None:
        if not state:
            return total
        parts: dict[tuple[int, str], dict[str, Tensor]] = {}
        for name, tensor in state.items():
            index, kind, field = name.split(":")
            parts.setdefault((int(index), kind), {})[field] = tensor
        added = [KINDS[kind](**tensors).dense() for (_, kind), tensors in sorted(parts.items(), key=lambda e: e[0])]
        return torch.stack(added) if total is None else total + torch.stack(added)

    def none() -> Tensor | None:
        return None

    total = History.of(history).summed("easyeditor: K Kᵀ", none, add)
    return None if total is None else total.clone()  # EasyEdit adds to it in place


def added_keys(keys: Tensor | None, history: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What an operation added to Σ K Kᵀ, per layer and in its smallest form: its rank is the number of facts."""
    if keys is None:
        return {}
    before = earlier_keys(history)
    before = torch.zeros_like(keys) if before is None else before
    added = [difference(old, new) for old, new in zip(before, keys, strict=True)]
    return {f"{i}:{d.kind}:{field}": t for i, d in enumerate(added) for field, t in d.tensors().items()}
