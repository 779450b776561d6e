"""Which experts a model picks, and with which gates."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit.editors._shared.forward import by_row
from lm_eval_edit.editors._shared.rows import prompt_row
from lm_eval_edit.facts.fact import SLOT, Fact
from lm_eval_edit.facts.tokens import encode
from lm_eval_edit.models import naming
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.models.devices import input_device
from lm_eval_edit.models.stopping import Reached, until_reached

_ROWS = 256  # prompts of one pass


@dataclass(frozen=True)
class Picked:
    """What the router of one block picks for n tokens, on the CPU.

    Attributes:
        experts: (n, k), those with the largest gate first.
        gates: (n, k) theirs.
    """

    experts: Tensor
    gates: Tensor

    @classmethod
    def of(cls, index: Tensor, gates: Tensor) -> Picked:
        """From what the experts are called with."""
        order = gates.argsort(dim=1, descending=True, stable=True)
        return cls(index.gather(1, order).cpu(), gates.gather(1, order).double().cpu())

    @property
    def shares(self) -> Tensor:
        """(n, k) of the gates' sum."""
        return self.gates / self.gates.sum(dim=1, keepdim=True)

    def same_choice(self, other: Picked) -> list[bool]:
        """(n,) whether the same experts are picked, whatever their gates."""
        return (self.experts.sort(dim=1).values == other.experts.sort(dim=1).values).all(dim=1).tolist()


@torch.no_grad()
def watched_routing(
    model: PreTrainedModel,
    architecture: Architecture,
    inputs: Mapping[str, Any],
    layers: Sequence[int],
    told: Callable[[int, Tensor, Tensor], None],
) -> None:
    """A pass that ends where the highest of some layers calls its experts.

    Args:
        inputs: What the model is called with.
        layers: Layers with a mixture of experts.
        told: Called with each of them, the experts (N, k) that its router picks for the pass's tokens, and their gates.
    """

    def on(layer: int) -> Callable[[Tensor, Tensor, Tensor], None]:
        def called(hidden: Tensor, index: Tensor, gates: Tensor) -> None:
            told(layer, index, gates)
            if layer == max(layers):
                raise Reached

        return called

    with contextlib.ExitStack() as hooks:
        for layer in layers:
            mixture = architecture.mixtures[layer]
            assert mixture is not None, "only layers with a mixture are asked about"
            hooks.callback(mixture.watch(model, on(layer)).remove)
        hooks.enter_context(until_reached())
        model(**inputs, **naming.without_cache(model))


def prompt_routing(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    architecture: Architecture,
    facts: Sequence[Fact],
    layers: Sequence[int],
) -> dict[int, Picked]:
    """What some layers' routers pick at the last token of the subject (of a prompt without one: at its last token).

    Args:
        facts: The n facts; their bare prompts are run.
        layers: Layers with a mixture of experts.

    Returns:
        By layer.
    """
    found: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
    for start in range(0, len(facts) if layers else 0, _ROWS):
        rows, last = [], []
        for fact in facts[start : start + _ROWS]:
            if fact.subject.strip():
                row = prompt_row(tokenizer, fact.behind(SLOT), fact.subject)
                ids, at = row.ids[: row.subject_last + 1], row.subject_last
            else:
                ids = encode(tokenizer, fact.text)
                at = len(ids) - 1
            rows.append(torch.tensor(ids))
            last.append(at)
        # Padding stands on the right, out of sight of what is looked at.
        input_ids = pad_sequence(rows, batch_first=True).to(input_device(model))
        at_last = torch.tensor(last, device=input_ids.device)

        def told(layer: int, *given: Tensor, last: Tensor = at_last) -> None:
            index, gates = (
                by_row(each, len(last))[torch.arange(len(last), device=each.device), last.to(each.device)]
                for each in given
            )
            found[layer].append((index, gates))

        inputs = {"input_ids": input_ids, naming.MASK: torch.ones_like(input_ids)}
        watched_routing(model, architecture, inputs, layers, told)
    return {layer: Picked.of(*map(torch.cat, zip(*parts, strict=True))) for layer, parts in found.items() if parts}


def record(
    before: Mapping[int, Picked], after: Mapping[int, Picked], facts: Sequence[Fact], told: Sequence[int]
) -> dict[str, Any]:
    """What a ledger says of the routing of an operation's prompts, before it and after.

    Args:
        before, after: Of the layers with a mixture.
        facts: The operation's.
        told: The layers of which all picks and gates are recorded.

    Returns:
        `by_layer`: per layer and fact `experts` and `gates`, each before and after; `changed`: per layer the ids of the
        facts for which other experts are picked than before.
    """
    changed = {}
    for layer, picked in before.items():
        same = picked.same_choice(after[layer])
        if not all(same):
            changed[str(layer)] = [fact.id for fact, kept in zip(facts, same, strict=True) if not kept]
    by_layer = {
        str(layer): {
            "experts": [before[layer].experts.tolist(), after[layer].experts.tolist()],
            "gates": [_rounded(before[layer].gates), _rounded(after[layer].gates)],
        }
        for layer in told
        if layer in before
    }
    return {"by_layer": by_layer, "changed": changed}


def _rounded(gates: Tensor) -> list[list[float]]:
    return [[round(gate, 5) for gate in of_fact] for of_fact in gates.tolist()]
