"""What fine-tuning trains of a layer: the down-projection's parameters, or some of a mixture's experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lm_eval_edit.editors._shared.finetune import chunks, padded
from lm_eval_edit.editors._shared.routing import watched_routing
from lm_eval_edit.editors._shared.rows import Row
from lm_eval_edit.models import naming
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.weights.delta import Delta, DenseDelta
from lm_eval_edit.weights.edited import wide_dtype
from lm_eval_edit.weights.stacked import SlicesDelta

_ROWS = 64  # of one pass without gradients


def expert_numbers(given: Any) -> tuple[int, ...] | None:
    """Experts as a user writes them: 3, "3:17", [3, 17], or None.

    Raises:
        ValueError: anything else, or one of them twice.
    """
    if given is None or (isinstance(given, str) and given.strip().lower() == "none"):
        return None
    parts = given.split(":") if isinstance(given, str) else given if isinstance(given, (list, tuple)) else [given]
    numbers = [int(part) for part in parts if str(part).strip().isdecimal()]
    if not numbers or len(numbers) < len(parts) or len(set(numbers)) < len(numbers):
        raise ValueError(f"experts={given!r}: want experts' numbers, each once, as 3:17 or a list")
    return tuple(numbers)


@dataclass(frozen=True)
class Trained:
    """One parameter of which all is trained, or some slices.

    Attributes:
        name: Its name.
        whole: The parameter as it stands.
        index: (m,) the slices along its first dimension; None for all of it.
    """

    name: str
    whole: Tensor
    index: Tensor | None = None

    @property
    def start(self) -> Tensor:
        """What is trained, as it stands, in float32 or wider: its own copy."""
        chosen = self.whole if self.index is None else self.whole[self.index]
        return chosen.to(wide_dtype(self.whole.dtype), copy=True)

    def in_place(self, value: Tensor) -> Tensor:
        """The parameter with other values for what is trained, differentiable in them."""
        value = value.to(self.whole.dtype)
        return value if self.index is None else self.whole.index_copy(0, self.index, value)

    def delta(self, change: Tensor) -> Delta:
        """The update that adds `change` to what is trained."""
        if self.index is None:
            return DenseDelta(change)
        return SlicesDelta(self.index, change, torch.tensor(self.whole.shape))


def trained_parts(
    model: PreTrainedModel,
    architecture: Architecture,
    layers: Sequence[int],
    rows: Sequence[Row],
    experts: Sequence[int] = (),
) -> list[Trained]:
    """Weight and, where there is one, bias of each layer's down-projection; of a mixture the experts' weights alone.

    Args:
        model: The model.
        architecture: With what is edited as its down-projections.
        layers: The trained layers.
        rows: What it is trained on.
        experts: The trained experts of each mixture; where none are given, those that tokens of the rows go to now.
            Without weight decay that is as though all were trained where one routed layer is: no other expert has a
            gradient. Where several are, training moves what the higher routers see, and an expert that is first
            picked then stays as it is.
    """
    routed = [layer for layer in layers if architecture.is_routed(layer)]
    chosen = {layer: list(experts) for layer in routed} if experts else _picked(model, architecture, routed, rows)
    parts = []
    for layer in layers:
        if layer in chosen:
            name = architecture.weight(layer)
            whole = model.get_parameter(name).detach()
            parts.append(Trained(name, whole, torch.tensor(chosen[layer], device=whole.device)))
        else:
            module = architecture.down_projections[layer]
            names = [f"{module}.{name}" for name, _ in model.get_submodule(module).named_parameters()]
            parts += [Trained(name, model.get_parameter(name).detach()) for name in names]
    return parts


def _picked(
    model: PreTrainedModel, architecture: Architecture, layers: Sequence[int], rows: Sequence[Row]
) -> dict[int, list[int]]:
    """The experts that any token of the rows is routed to, by layer, in ascending order."""
    found: dict[int, set[int]] = {layer: set() for layer in layers}
    for part in chunks(rows, _ROWS) if layers else ():
        batch = padded(model, part)
        lengths = torch.tensor([len(row.ids) for row in part])
        real = (torch.arange(batch.input_ids.shape[1]) < lengths[:, None]).flatten()

        def told(layer: int, index: Tensor, gates: Tensor, real: Tensor = real) -> None:
            found[layer].update(index[real.to(index.device)].flatten().tolist())

        inputs = {"input_ids": batch.input_ids, naming.MASK: batch.attention_mask}
        watched_routing(model, architecture, inputs, layers, told)
    return {layer: sorted(experts) for layer, experts in found.items()}
