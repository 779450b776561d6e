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

from lm_eval_edit.editors._shared.keys import subject_states
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.moments.blocks import Matrix, lower_solve

NOTHING: Mapping[str, float] = MappingProxyType({})

_STATE = "from_model:"


def closed_share(share: float, n_layers: int) -> float:
    """What L layers close of a residual of which each is given an equal part, and closes `share` of its part.

    The i-th layer from the top is given 1 / i of what is left, so 1 − Π_i (1 − share / i).
    """
    left = 1.0
    for i in range(1, n_layers + 1):
        left *= 1 - share / i
    return 1 - left


def share_for(closed: float, n_layers: int) -> float:
    """The share of its part that each of L layers must close, so that together they close `closed` of the residual."""
    low, high = 0.0, 1.0
    for _ in range(60):  # `closed_share` rises with the share: halve the interval to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if closed_share(middle, n_layers) < closed else (low, middle)
    return low


#: What MEMIT closes at the settings published for GPT-J, the model of the paper's main experiments (f = 16384,
#: λ = 15000, six layers), if its subjects' keys are as large as those of its text: 0.79. LLaMA-7B 0.68, GPT-2 XL 0.45.
MEMIT_CLOSED = closed_share(16384 / (16384 + 15000), 6)
#: The same of EMMET for GPT-2 XL (f = 6400, λ = 10000, ρ = 0.1, one layer): 0.86. LLaMA-7B has 0.52.
EMMET_CLOSED = closed_share(6400 / (6400 + 0.1 * 10000), 1)


def update_weight(
    context: EditContext,
    facts: Sequence[Fact],
    layers: Sequence[int],
    closed: float,
    ridge: float = 1.0,
    shared_by: int | None = None,
) -> float:
    """λ with which the layers close the share `closed` of the residual of a fact with the median key.

    With s = kᵀC⁻¹k / λ and without other facts the update moves the output for k by s / (s + ρ) of what it was given.
    For a key of ordinary text kᵀC⁻¹k is f in the mean, E[kᵀC⁻¹k] = tr(C⁻¹C), whatever the size of the keys.

    Args:
        context: With second moments of the layers; the keys are taken on the weights as they stand.
        facts: Of the first operation; their order does not matter.
        layers: The edited layers, lowest first.
        closed: What is to be closed, below 1.
        ridge: ρ: 1 for MEMIT, `emmet_lambda` for EMMET.
        shared_by: How many of the layers close a residual together, all by default; 1 where each has its own.
    """
    keys = subject_states(context, facts, layers, layers[-1]).keys
    sizes = []
    for layer in layers:
        factor = context.second_moments.cholesky(
            context.architecture.down_projections[layer], device=keys[layer].device
        )
        whitened = lower_solve(factor, keys[layer])  # (f, n), kᵀC⁻¹k = ‖L⁻¹k‖²
        sizes.append((whitened**2).sum(dim=0).cpu())
    share = share_for(closed, shared_by or len(layers))
    return float(torch.cat(sizes).quantile(0.5)) * (1 - share) / (share * ridge)


def norm_weight(
    context: EditContext,
    facts: Sequence[Fact],
    bases: Mapping[int, Matrix],
    closed: float,
    shared_by: int | None = None,
) -> float:
    """AlphaEdit's α with which the layers close the share `closed` of the residual of a fact with the median key.

    Without other facts the update moves the output for k by ‖P k‖² / (‖P k‖² + α) of what it was given.

    Args:
        bases: {edited layer: U (f, r)}, lowest first, with P = U Uᵀ.
        context, facts, closed, shared_by: As for `update_weight`.
    """
    layers = list(bases)
    keys = subject_states(context, facts, layers, layers[-1]).keys
    sizes = [((basis.to(keys[at].device).T @ keys[at]) ** 2).sum(dim=0).cpu() for at, basis in bases.items()]
    share = share_for(closed, shared_by or len(layers))
    return float(torch.cat(sizes).quantile(0.5)) * (1 - share) / share


def kept(history: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """What the first operation of a schedule has fixed: {option: value}; empty before there is one."""
    first = history[0] if history else {}
    return {name.removeprefix(_STATE): float(value) for name, value in first.items() if name.startswith(_STATE)}


def to_keep(values: Mapping[str, float]) -> dict[str, Tensor]:
    """`values` as the state of the first operation, exact to the last bit."""
    return {_STATE + name: torch.tensor([value], dtype=torch.float64) for name, value in values.items()}
