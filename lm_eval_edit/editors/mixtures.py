"""Which of a mixture's matrices a method edits, and what to say where it cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line asks for EXPERTS, and must not wait for torch
    from lm_eval_edit.models.architecture import Architecture

EXPERTS = ("shared", "routed")
"""What `edit_experts` takes: the expert that every token passes through, where there is one, or those picked for it."""


def check_experts(given: str) -> None:
    """Raise ValueError where `edit_experts` is neither."""
    if given not in EXPERTS:
        raise ValueError(f"edit_experts={given!r}: want {' or '.join(EXPERTS)}")


def mixture_problems(
    method: str,
    asked: str,
    found: Architecture,
    edited: Architecture,
    layers: Sequence[int],
    not_routed: str,
    others: Callable[[], Sequence[str]],
) -> list[str]:
    """Why a method cannot edit some layers, as far as their mixtures are concerned, as a list of sentences.

    Args:
        method: Its name.
        asked: `edit_experts`, or empty for a method without it.
        found: The model's parts.
        edited: The same with what is to be edited as down-projections.
        layers: The layers.
        not_routed: Why the method cannot edit experts that are picked; empty where it can.
        others: Finds the methods that can.
    """
    numbers = ", ".join(map(str, layers))
    if asked == "routed" and all(found.mixtures[layer] is None for layer in layers):
        return [f"edit_experts=routed: layers {numbers} of this model have no mixture of experts; leave it out"]
    routed = [layer for layer in layers if edited.is_routed(layer)]
    if not routed or not not_routed:
        return []
    return [
        f"{method} cannot edit the experts of layer{'s' * (len(routed) > 1)} {', '.join(map(str, routed))}: "
        f"{not_routed}. Methods that can are editor={', '.join(others())}"
    ]


def ends_in(path: str, name: str) -> bool:
    """Whether the last parts of a path are a name's."""
    return f".{path}".endswith(f".{name}")


def expert_names(found: Architecture, layers: Sequence[int], names: Sequence[str]) -> list[str]:
    """Those of some modules' names that are what holds the routed experts of these layers, or one of its tensors."""
    mixtures = [mixture for mixture in (found.mixtures[layer] for layer in layers) if mixture is not None]
    held = [path for mixture in mixtures for path in (mixture.experts, mixture.up, mixture.down)]
    return [name for name in names if any(ends_in(path, name) for path in held)]
