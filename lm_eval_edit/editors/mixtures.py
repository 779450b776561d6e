"""Which of a mixture's matrices a method edits, and what to say where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
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
    method: str, asked: str, found: Architecture, edited: Architecture, layers: Sequence[int], not_routed: str
) -> list[str]:
    """Why a method cannot edit some layers, as far as their mixtures are concerned, as a list of sentences.

    Args:
        method: Its name.
        asked: `edit_experts`, or empty for a method without it.
        found: The model's parts.
        edited: The same with what is to be edited as down-projections.
        layers: The layers.
        not_routed: Why the method cannot edit experts that are picked; empty where it can.
    """
    numbers = ", ".join(map(str, layers))
    if asked == "routed" and all(found.mixtures[layer] is None for layer in layers):
        return [f"edit_experts=routed: layers {numbers} of this model have no mixture of experts; leave it out"]
    routed = [layer for layer in layers if edited.is_routed(layer)]
    if not routed or not not_routed:
        return []
    return [
        f"{method} cannot edit the experts of layer{'s' * (len(routed) > 1)} {', '.join(map(str, routed))}: "
        f"{not_routed}. Use editor=memit, memit_seq, alphaedit, rome or ft"
    ]
