"""Where an edit acts in a block: the matrix W, its keys, and the output that W k is part of.

    LinearSite   one linear map, that every token passes through: k is its input
    RoutedSite   the down-projections of a mixture's experts, side by side: k is the stacked key (`models.mixture`)

An editor computes with keys (m, n) and outputs (d, n); what W is, it need not know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lm_eval_edit.models.architecture import Architecture, is_transposed
from lm_eval_edit.models.mixture import Mixture
from lm_eval_edit.weights.delta import Delta, linear_update
from lm_eval_edit.weights.edited import wide_dtype
from lm_eval_edit.weights.stacked import expert_update


@dataclass(frozen=True)
class Site(ABC):
    """What one layer's edit changes.

    Attributes:
        model: The model.
        name: What second moments and keys of the layer are called.
        parameter: The parameter that is changed.
        output: Module path of what gives W k, among other things perhaps.
    """

    model: nn.Module
    name: str
    parameter: str
    output: str

    @property
    def weight(self) -> Tensor:
        """The parameter as it stands."""
        return self.model.get_parameter(self.parameter)

    @property
    def dtype(self) -> torch.dtype:
        """What its updates are computed in."""
        return wide_dtype(self.weight.dtype)

    @abstractmethod
    def watch_keys(self, pick: Callable[[Tensor], Tensor], keep: Callable[[Tensor], None]) -> RemovableHandle:
        """Have the keys of every pass handed to `keep`.

        Args:
            pick: What the site is given at all positions, (N, ·) or (R, T, ·) -> that at n of them, (n, ·).
            keep: Is handed (n, m).
        """

    @abstractmethod
    def update(self, inputs: Tensor, outputs: Tensor) -> Delta:
        """The delta that adds outputs @ inputs.T to W.

        Args:
            inputs: (m, r) directions of key space.
            outputs: (d, r) what each of them is sent to.
        """


@dataclass(frozen=True)
class LinearSite(Site):
    """One linear map."""

    def watch_keys(self, pick: Callable[[Tensor], Tensor], keep: Callable[[Tensor], None]) -> RemovableHandle:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            keep(pick(args[0]))

        return self.model.get_submodule(self.name).register_forward_pre_hook(hook)

    def update(self, inputs: Tensor, outputs: Tensor) -> Delta:
        transposed = is_transposed(self.model.get_submodule(self.name))
        return linear_update(transposed, inputs.to(self.dtype), outputs.to(self.dtype))


@dataclass(frozen=True)
class RoutedSite(Site):
    """The experts of a mixture; only those with a part in the inputs are changed."""

    mixture: Mixture

    def watch_keys(self, pick: Callable[[Tensor], Tensor], keep: Callable[[Tensor], None]) -> RemovableHandle:
        def told(*given: Tensor) -> None:
            keep(self.mixture.stacked_keys(self.model, *map(pick, given)))

        return self.mixture.watch(self.model, told)

    def update(self, inputs: Tensor, outputs: Tensor) -> Delta:
        inputs = self.mixture.per_expert(inputs.to(self.dtype))  # (E, f, r)
        used = inputs.flatten(1).any(dim=1).nonzero()[:, 0]
        experts = self.mixture.n_experts
        # What is added to the output is the same whichever expert adds it.
        return expert_update(self.mixture.transposed, used, inputs[used], outputs.to(self.dtype)[None], experts)


def site_of(model: nn.Module, architecture: Architecture, layer: int) -> Site:
    """The site of a layer."""
    name, parameter = architecture.down_projections[layer], architecture.weight(layer)
    mixture = architecture.routed_mixture(layer)
    if mixture is None:
        return LinearSite(model, name, parameter, name)
    return RoutedSite(model, name, parameter, mixture.path, mixture)
