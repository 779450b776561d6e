"""Editors that tests wrap: they look at no model, and what they compute is known beforehand."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lm_eval_edit.editors.base import Editor, EditResult, option
from lm_eval_edit.weights.delta import DenseDelta, LowRankDelta, SparseDelta
from lm_eval_edit.weights.stacked import SlicesDelta, StackedDelta

WEIGHT = "transformer.h.1.mlp.c_proj.weight"
DOWN = "model.layers.1.mlp.experts.down_proj"  # of the tiny mixtures


@dataclass(frozen=True)
class PairOptions:
    layers: tuple[int, ...] = option("layers", default=(1,))
    size: float = option("how large", default=0.1)


class Pair(Editor):
    """For tests: edits batches, and each operation depends on the states of those before it."""

    name, summary, source, Options, batches = "pair", "for tests", "here", PairOptions, True

    def fact_problem(self, fact):
        return "it is Rosa's" if "Rosa" in fact.subject else None

    def compute(self, context, facts, history=()):
        generator = torch.Generator().manual_seed(sum(10 ** int(fact.id) for fact in facts))
        earlier = sum((state["sum"] for state in history), torch.zeros(()))
        left = torch.randn(96, len(facts), generator=generator) * (self.options.size + earlier)
        delta = LowRankDelta(left, torch.randn(len(facts), 32, generator=generator))
        return EditResult({WEIGHT: delta}, state={"sum": left.abs().sum() / 1e3})


class Slices(Pair):
    """For tests: a sparse and a dense delta."""

    def compute(self, context, facts, history=()):
        values = torch.arange(64.0).view(2, 32) - 20.5
        bias = torch.arange(32.0) - 7.5
        return EditResult(
            {
                WEIGHT: SparseDelta(torch.tensor([3, 90]), values, torch.tensor([96, 32, 0])),
                "transformer.h.1.mlp.c_proj.bias": DenseDelta(bias),
            }
        )


class Experts(Pair):
    """For tests: changes two experts of a mixture by a product each, which ones depends on the facts."""

    name, not_routed = "experts", ""

    def fact_problem(self, fact):
        return None

    def compute(self, context, facts, history=()):
        size = torch.tensor(context.model.get_parameter(DOWN).shape)
        generator = torch.Generator().manual_seed(sum(10 ** int(fact.id) for fact in facts))
        earlier = sum((state["sum"] for state in history), torch.zeros(()))
        index = (torch.arange(2) + int(facts[0].id)) % int(size[0])
        left = torch.randn(1, int(size[1]), len(facts), generator=generator) * (self.options.size + earlier)
        right = torch.randn(2, len(facts), int(size[2]), generator=generator)
        return EditResult({DOWN: StackedDelta(index, left, right, size)}, state={"sum": left.abs().sum() / 1e3})


class ExpertSlices(Experts):
    """For tests: the same, as dense slices."""

    name = "expert_slices"

    def compute(self, context, facts, history=()):
        result = super().compute(context, facts, history)
        delta = result.deltas[DOWN]
        return EditResult({DOWN: SlicesDelta(delta.index, delta.left @ delta.right, delta.size)}, state=result.state)
