"""Which of a mixture's experts are edited."""

from __future__ import annotations

from dataclasses import replace

from lm_eval_edit.editors._shared.routing import prompt_routing
from lm_eval_edit.editors._shared.target import Targets
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Fact


def one_expert(context: EditContext, fact: Fact, layer: int, targets: Targets, min_gate: float) -> Targets:
    """The same with keys of the expert alone that has the largest gate for the bare prompt; of a dense layer as it is.

    Args:
        context: The model and its surroundings.
        fact: Whose targets they are.
        layer: The edited layer.
        targets: With stacked keys.
        min_gate: The least share of the picked experts' gates.

    Raises:
        UserError: the expert's share is smaller.
    """
    mixture = context.architecture.routed_mixture(layer)
    if mixture is None:
        return targets
    picked = prompt_routing(context.model, context.tokenizer, context.architecture, [fact], [layer])[layer]
    expert, share = int(picked.experts[0, 0]), float(picked.shares[0, 0])
    if share < min_gate:
        raise UserError(
            f"fact {fact.id}: of the {mixture.top_k} experts that layer {layer} picks for its subject, {expert} has "
            f"the largest gate, {share:.3f} of all, which is below min_gate={min_gate:g}: an edit of that expert alone "
            f"would be {1 / share:.1f} times as large as one of a whole layer. Give a smaller min_gate, another "
            f"layer, or editor=memit, which edits all experts that are picked"
        )
    kept = targets.keys.new_zeros(*targets.keys.shape[:2], mixture.n_experts, mixture.key_size)
    kept[:, :, expert] = targets.keys.reshape(kept.shape)[:, :, expert]
    return replace(targets, keys=kept.flatten(2))
