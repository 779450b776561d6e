"""Hyper-parameters with a scale, found in the model itself where no published one fits.

A value that was tuned on one model means something else in a model of another size. What can be carried over is a
ratio without units; docs/defaults.md derives each of them and says what it gives.

They are fixed by the first operation of a schedule, which hands them to the later ones through its state in the ledger:
λ does not change in the course of a run, a run that was resumed has the very same, and so has each prefix of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from lm_eval_edit.editors._keys import subject_states
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.facts import Fact

#: f / λ of MEMIT on GPT-J, the model of the paper's main experiments: f = 16384, λ = 15000. The others that are
#: published are 0.73 (LLaMA-7B) and 0.32 (GPT-2 XL).
MEMIT_KEY_WEIGHT = 16384 / 15000
#: f / λ of EMMET on GPT-2 XL, EasyEdit's file: f = 6400, λ = 10000.
EMMET_KEY_WEIGHT = 6400 / 10000

NOTHING: Mapping[str, float] = MappingProxyType({})

_STATE = "from_model:"


def update_weight(context: EditContext, facts: Sequence[Fact], layers: Sequence[int], key_weight: float) -> float:
    """λ with kᵀ(λC)⁻¹k = `key_weight` for the median key k of the facts in the layers, on the weights as they stand.

    Alone, a key's fact then closes the share s / (1 + s) of what it lacks, s = `key_weight`: (λC + kkᵀ)⁻¹k meets k with
    it. For a key of ordinary text kᵀC⁻¹k is f in the mean, since E[kᵀC⁻¹k] = tr(C⁻¹C), whatever the size of the keys.

    Args:
        context: With second moments of the layers.
        facts: Of the first operation; their order does not matter.
        layers: The edited layers, lowest first.
        key_weight: s.
    """
    keys = subject_states(context, facts, layers, layers[-1]).keys
    sizes = []
    for layer in layers:
        factor = context.second_moments.cholesky(context.architecture.down_projections[layer], device=keys[layer].device)
        whitened = torch.linalg.solve_triangular(factor, keys[layer], upper=False)  # (f, n), kᵀC⁻¹k = ‖L⁻¹k‖²
        sizes.append((whitened**2).sum(dim=0).cpu())
    return float(torch.cat(sizes).quantile(0.5)) / key_weight


def kept(history: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """What the first operation of a schedule has fixed: {option: value}; empty before there is one."""
    first = history[0] if history else {}
    return {name.removeprefix(_STATE): float(value) for name, value in first.items() if name.startswith(_STATE)}


def to_keep(values: Mapping[str, float]) -> dict[str, Tensor]:
    """`values` as the state of the first operation, exact to the last bit."""
    return {_STATE + name: torch.tensor([value], dtype=torch.float64) for name, value in values.items()}
