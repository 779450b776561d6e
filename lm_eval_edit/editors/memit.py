"""MEMIT: many facts at once, spread over several layers' MLP down-projections.

Meng et al., *Mass-Editing Memory in a Transformer*, ICLR 2023 (arXiv 2210.07229). For every fact a target z for the
residual stream above the last edited layer; then, layer by layer on the weights edited so far, the least-squares update
that adds an equal share of what is still missing and disturbs ordinary text least.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lm_eval_edit.editors._shared.keys import solve_normal_equations, subject_states
from lm_eval_edit.editors._shared.progress import steps
from lm_eval_edit.editors._shared.scale import MEMIT_CLOSED, NOTHING, kept, to_keep, update_weight
from lm_eval_edit.editors._shared.target import optimise_targets
from lm_eval_edit.editors.base import EditContext, Editor, EditResult, option
from lm_eval_edit.editors.templates import TemplatePlan
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.models.architecture import is_transposed
from lm_eval_edit.models.devices import weight_of
from lm_eval_edit.weights.delta import Delta, linear_update
from lm_eval_edit.weights.edited import temporarily_applied, wide_dtype


@dataclass(frozen=True)
class BatchOptions:
    """Hyper-parameters that MEMIT and its kin share, under EasyEdit's names."""

    layers: tuple[int, ...] = option("the edited layers, lowest first", default=())
    v_num_grad_steps: int = option("forward passes of the target optimisation: one more than Adam steps", default=20)
    v_lr: float = option("Adam's learning rate", default=0.5)
    v_weight_decay: float = option("weight of ‖δ‖ / ‖z_init‖² in the loss", default=0.5)
    clamp_norm_factor: float = option("δ is kept within this many norms of z_init", default=0.75)
    kl_factor: float = option('weight of the drift of "{subject} is a" in the loss', default=0.0625)
    v_batch_size: int = option(
        "facts whose targets are optimised at once: bounds memory, changes nothing else", default=16, tuned=False
    )
    fact_token: str = option("where the fact is read and written; only subject_last", default="subject_last")
    mom2_adjustment: bool = option("use the second moments; only true", default=True)
    context_template_length_params: tuple[tuple[int, int], ...] = option(
        "(tokens, samples) of the context templates sampled from the model", default=((10, 5),)
    )
    context_templates: tuple[tuple[str, ...], ...] = option("templates to use instead of sampling any", default=())

    def __post_init__(self) -> None:
        if self.fact_token != "subject_last":
            raise ValueError(f"fact_token={self.fact_token!r}: only 'subject_last' is supported")
        if not self.mom2_adjustment:
            raise ValueError("mom2_adjustment=False: this method is built on the second moments; leave it true")
        if self.v_batch_size < 1:
            raise ValueError(f"v_batch_size={self.v_batch_size}: want at least 1")
        if any(after <= before for before, after in zip(self.layers, self.layers[1:], strict=False)):
            raise ValueError(f"layers={list(self.layers)}: want each layer once, lowest first")


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

    @classmethod
    def default_layers(cls, n_layers: int) -> tuple[int, ...]:
        """The layers at the relative depths of GPT-2 XL's 13 to 17 of 48."""
        return tuple(range(round(n_layers * 13 / 48), round(n_layers * 17 / 48) + 1))

    def template_plan(self) -> TemplatePlan:
        return TemplatePlan(self.options.context_template_length_params, nested=True, braces=" ")

    def needs_second_moments(self) -> list[int]:
        return self.layers()

    def compute(
        self, context: EditContext, facts: Sequence[Fact], history: Sequence[Mapping[str, Tensor]] = ()
    ) -> EditResult:
        layers = self.options.layers
        scale = kept(history) if history else self._from_model(context, facts)
        values, details = self._targets(context, facts)  # (n, d), all on the weights before this operation
        deltas: dict[str, Delta] = {}
        missing = []
        with contextlib.ExitStack() as edited:
            for index, layer in enumerate(steps(layers, "updating layers", "layer", show=context.progress)):
                states = subject_states(context, facts, [layer], layers[-1])
                rest = values.to(states.outputs.device) - states.outputs  # (n, d)
                keys = states.keys[layer]
                directions = self._directions(context, layer, keys, history, scale)  # A (f, n)
                module = context.model.get_submodule(context.architecture.down_projections[layer])
                share = (rest / (len(layers) - index)).T.to(directions.device)  # R (d, n), eq. 20
                dtype = wide_dtype(weight_of(module).dtype)
                name = context.architecture.weight(layer)
                deltas[name] = linear_update(is_transposed(module), directions.to(dtype), share.to(dtype))
                edited.enter_context(temporarily_applied(context.model, {name: deltas[name]}))
                missing.append(rest.norm(dim=1).mean().cpu())
            left = (
                (values - subject_states(context, facts, [], layers[-1]).outputs.to(values.device)).norm(dim=1).mean()
            )
            state = self._state(context, facts) | ({} if history else to_keep(scale))
        details["missing"] = torch.stack(missing).tolist()  # mean ‖z − h‖ before each layer's update
        details["closed"] = 1 - float(left) / details["missing"][0] if details["missing"][0] else 1.0
        return EditResult(deltas, details | ({"from_model": scale} if scale else {}), state)

    def _from_model(self, context: EditContext, facts: Sequence[Fact]) -> dict[str, float]:
        """{option: value} of the options that are None: found on the weights before the schedule's first operation."""
        if self.options.mom2_update_weight is not None:
            return {}
        return {"mom2_update_weight": update_weight(context, facts, self.options.layers, MEMIT_CLOSED)}

    def _targets(self, context: EditContext, facts: Sequence[Fact]) -> tuple[Tensor, dict[str, Any]]:
        """(z (n, d) in float64, figures): what the last edited block should give for each bare prompt (eq. 16)."""
        o = self.options
        found = []
        with steps(None, "targets", "fact", show=context.progress, total=len(facts)) as bar:
            for start in range(0, len(facts), o.v_batch_size):
                chunk = facts[start : start + o.v_batch_size]
                found.append(
                    optimise_targets(
                        context.model,
                        context.tokenizer,
                        context.architecture,
                        chunk,
                        layer=o.layers[-1],
                        site="block",
                        contexts=[template for templates in context.context_templates for template in templates],
                        steps=o.v_num_grad_steps,
                        lr=o.v_lr,
                        weight_decay=o.v_weight_decay,
                        clamp_norm_factor=o.clamp_norm_factor,
                        kl_factor=o.kl_factor,
                        progress=context.progress,
                    )
                )
                bar.update(len(chunk))
        values = torch.cat([targets.value.double() for targets in found])
        losses = [loss for targets in found for loss in targets.losses.tolist()]
        return values, {"loss": losses, "steps": [count for targets in found for count in targets.steps.tolist()]}

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
