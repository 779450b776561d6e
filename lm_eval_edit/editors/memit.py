"""MEMIT: many facts at once, spread over several layers' MLP down-projections.

Meng et al., *Mass-Editing Memory in a Transformer*, ICLR 2023 (arXiv 2210.07229). For every fact a target z for the
residual stream above the last edited layer; then, layer by layer on the weights edited so far, the least-squares update
that adds an equal share of what is still missing and disturbs ordinary text least.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lm_eval_edit.editors._shared.anchors import anchor_name, anchors, too_few
from lm_eval_edit.editors._shared.batch_options import BatchOptions
from lm_eval_edit.editors._shared.goals import Goals, find_goals
from lm_eval_edit.editors._shared.keys import SubjectStatesInTurn, solve_normal_equations
from lm_eval_edit.editors._shared.progress import steps
from lm_eval_edit.editors._shared.scale import MEMIT_CLOSED, NOTHING, kept, to_keep, update_weight
from lm_eval_edit.editors._shared.sites import site_of
from lm_eval_edit.editors.base import EditContext, Editor, EditResult, option
from lm_eval_edit.editors.templates import TemplatePlan
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.weights.delta import Delta
from lm_eval_edit.weights.edited import temporarily_applied

logger = logging.getLogger("lm_eval_edit")


@dataclass(frozen=True)
class MemitOptions(BatchOptions):
    """Hyper-parameters of MEMIT, under EasyEdit's names."""

    mom2_update_weight: float | None = option(
        "λ, how much ordinary text weighs against the facts",
        from_model="such that the first operation closes as much of the residual as GPT-J's published settings do",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mom2_update_weight is not None and self.mom2_update_weight <= 0:
            raise ValueError(f"mom2_update_weight={self.mom2_update_weight:g}: want a positive number")


class Memit(Editor):
    """W_l ← W_l + R_l Kᵀ(λC + K Kᵀ)⁻¹, R_l = (Z − H) / (layers left), for each edited layer in turn (eqs. 14, 20)."""

    name = "memit"
    summary = "least-squares update of several MLP matrices, many facts at once"
    source = "Meng et al. 2023, arXiv 2210.07229"
    Options: ClassVar[type] = MemitOptions
    batches = True
    not_routed = ""
    fact_rank = 1

    @classmethod
    def default_layers(cls, n_layers: int) -> tuple[int, ...]:
        """The layers at the relative depths of GPT-2 XL's 13 to 17 of 48."""
        return tuple(range(round(n_layers * 13 / 48), round(n_layers * 17 / 48) + 1))

    def template_plan(self) -> TemplatePlan:
        return TemplatePlan(self.options.context_template_length_params, nested=True, braces=" ")

    def needs_second_moments(self) -> list[int]:
        return self.layers()

    def layers(self) -> list[int]:
        """The edited layers: with `own_targets` the first and the last of those given."""
        given = list(self.options.layers)
        return [given[0], given[-1]] if self.options.own_targets and len(given) > 2 else given

    def schedule_problems(self, n_facts: int) -> list[str]:
        return too_few(n_facts, self.options, self.fact_problem)

    def compute(
        self, context: EditContext, facts: Sequence[Fact], history: Sequence[Mapping[str, Tensor]] = ()
    ) -> EditResult:
        scale = kept(history)
        origins: dict[str, str] = {}
        if not history:
            blocks = [layers[-1] for layers in self._groups()]
            measured, origins = anchors(context, facts, blocks, self.options, self.fact_problem)
            scale = self._from_model(context, facts) | measured
        deltas: dict[str, Delta] = {}
        found: dict[str, dict[str, Any]] = {}
        with contextlib.ExitStack() as edited:
            for layers in self._groups():  # all on the weights before this operation; BLUE's on those edited so far
                goals = self._goals(context, facts, layers[-1], scale)
                closed = self._close(context, facts, layers, goals, history, scale, deltas, edited)
                found[str(layers[-1])] = goals.details | closed
            state = self._state(context, facts) | ({} if history else to_keep(scale))
        details, *others = found.values()
        if others:
            details = {"closed": sum(each["closed"] for each in found.values()) / len(found), "by_layer": found}
        details |= ({"from_model": scale} if scale else {}) | ({"norm_anchor_from": origins} if origins else {})
        return EditResult(deltas, details, state)

    def _groups(self) -> list[list[int]]:
        """The layers that share a target: all of them, or each by itself (BLUE)."""
        return [[layer] for layer in self.layers()] if self.options.own_targets else [self.layers()]

    def _close(
        self,
        context: EditContext,
        facts: Sequence[Fact],
        layers: Sequence[int],
        goals: Goals,
        history: Sequence[Mapping[str, Tensor]],
        scale: Mapping[str, float],
        deltas: dict[str, Delta],
        edited: contextlib.ExitStack,
    ) -> dict[str, Any]:
        """Bring the last of some layers to its goals, each of them taking an equal part of what is left.

        Args:
            deltas: Gets the update of every layer.
            edited: Within it the model carries them.

        Returns:
            Figures for the ledger.
        """
        missing = []
        passes = SubjectStatesInTurn(context, facts, layers[-1])
        for index, layer in enumerate(steps(layers, "updating layers", "layer", show=context.progress)):
            states = passes.states([layer])
            rest = _rest(goals, states.outputs)  # (n, d)
            keys = states.keys[layer]
            directions = self._directions(context, layer, keys, history, scale)  # A (f, n)
            share = (rest / (len(layers) - index)).T.to(directions.device)  # R (d, n), eq. 20
            site = site_of(context.model, context.architecture, layer)
            deltas[site.parameter] = site.update(directions, share)
            edited.enter_context(temporarily_applied(context.model, {site.parameter: deltas[site.parameter]}))
            missing.append(rest.norm(dim=1).mean())
        left = _rest(goals, passes.states([]).outputs).norm(dim=1).mean()
        found = [float(each) for each in missing]  # mean ‖z − h‖ before each layer's update
        # Targets that are what the block gives already, up to how its outputs are rounded: there is nothing to close.
        rounding = 4 * torch.finfo(context.model.dtype).eps * float(goals.init.norm(dim=1).mean())
        return {"missing": found, "closed": 1 - float(left) / found[0] if found[0] > rounding else 1.0}

    def _from_model(self, context: EditContext, facts: Sequence[Fact]) -> dict[str, float]:
        """{option: value} of the options that are None: found on the weights before the schedule's first operation."""
        if self.options.mom2_update_weight is not None:
            return {}
        return {
            "mom2_update_weight": update_weight(
                context, facts, self.layers(), MEMIT_CLOSED, shared_by=len(self._groups()[0])
            )
        }

    def _goals(
        self, context: EditContext, facts: Sequence[Fact], layer: int, scale: Mapping[str, float] = NOTHING
    ) -> Goals:
        """What a block should give for each bare prompt (eq. 16), on the weights as they stand."""
        goals, anchor = find_goals(context, facts, layer, self.options), self.options.norm_anchor
        if anchor is None:
            return goals
        goals = goals.anchored(anchor if isinstance(anchor, float) else scale[anchor_name(layer)], facts)
        if left_out := goals.details["left_out"]:
            logger.warning(
                "left out, the target's norm is above twice the anchor %g: %s",
                goals.details["norm_anchor"], ", ".join(map(str, left_out)),
            )  # fmt: skip
        return goals

    def _directions(
        self,
        context: EditContext,
        layer: int,
        keys: Tensor,
        history: Sequence[Mapping[str, Tensor]],
        scale: Mapping[str, float] = NOTHING,
    ) -> Tensor:
        """A (f, n) in float64, with ΔW = A Rᵀ as a map from keys: (λC + K Kᵀ)⁻¹ K here (eq. 14).

        Args:
            scale: The options that come from the model.
        """
        module = context.architecture.down_projections[layer]
        weight = scale.get("mom2_update_weight", self.options.mom2_update_weight)
        return solve_normal_equations(context.second_moments, module, weight, keys)

    def _state(self, context: EditContext, facts: Sequence[Fact]) -> dict[str, Tensor]:
        """What later operations must know, seen on the edited weights; nothing here."""
        return {}


def _rest(goals: Goals, outputs: Tensor) -> Tensor:
    """(n, d) what the outputs (n, d) lack; nothing for a fact that is left out."""
    rest = goals.values.to(outputs.device) - outputs
    return rest * goals.edited[:, None].to(rest)
