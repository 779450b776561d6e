"""ROME: one fact, one rank-one update of one MLP down-projection.

Meng et al., *Locating and Editing Factual Associations in GPT*, NeurIPS 2022 (arXiv 2202.05262). The published
implementation's choices are kept: u from the mean key over the context templates, the update's denominator from the
bare prompt's key (EasyEdit and the authors' repository agree; R-ROME differs there).

Of a mixture of experts the one with the largest gate is edited, as though the others were not there: its key is the
only part of k that is not zero.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm_eval_edit.editors._shared.experts import one_expert
from lm_eval_edit.editors._shared.sites import site_of
from lm_eval_edit.editors._shared.target import Targets, optimise_targets
from lm_eval_edit.editors.base import EditContext, Editor, EditResult, experts_option, option
from lm_eval_edit.editors.mixtures import check_experts
from lm_eval_edit.editors.templates import TemplatePlan, check_length_params
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.moments.blocks import cholesky_solve
from lm_eval_edit.weights.delta import Delta
from lm_eval_edit.weights.edited import temporarily_applied

logger = logging.getLogger("lm_eval_edit")

#: Cosine of the bare prompt's key and the mean key below which a fact is warned of; measured in docs/defaults.md.
UNLIKE = 0.3


@dataclass(frozen=True)
class RomeOptions:
    """Hyper-parameters of ROME, under EasyEdit's names."""

    layers: tuple[int, ...] = option("the edited layers; ROME's papers use one", default=())
    v_num_grad_steps: int = option(
        "forward passes of the target optimisation: one more than Adam steps", default=20, sign="positive"
    )
    v_lr: float = option("Adam's learning rate", default=0.5, sign="positive")
    v_weight_decay: float = option("weight of ‖δ‖ / ‖v_init‖² in the loss", default=0.5, sign="not negative")
    clamp_norm_factor: float = option("δ is kept within this many norms of v_init", default=4.0, sign="positive")
    kl_factor: float = option(
        'weight of the drift of "{subject} is a" in the loss', default=0.0625, sign="not negative"
    )
    mom2_adjustment: bool = option("whiten the key with the inverse second moment C⁻¹", default=False)
    fact_token: str = option("where the fact is read and written; only subject_last", default="subject_last")
    context_template_length_params: tuple[tuple[int, int], ...] = option(
        "(tokens, samples) of the context templates sampled from the model", default=((5, 10), (10, 10))
    )
    context_templates: tuple[str, ...] = option("templates to use instead of sampling any", default=())
    edit_experts: str = experts_option()
    min_gate: float = option(
        "share of the picked experts' gates below which the one with the largest is not edited alone",
        default=0.2, later=True, tuned=False,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_experts(self.edit_experts)
        if not 0 <= self.min_gate <= 1:
            raise ValueError(f"min_gate={self.min_gate:g}: want a share between 0 and 1")
        if self.fact_token != "subject_last":
            raise ValueError(f"fact_token={self.fact_token!r}: only 'subject_last' is supported")
        check_length_params(self.context_template_length_params)


def _likeness(fact: Fact, bare: Tensor, mean: Tensor) -> float:
    """The cosine of the key in the update's denominator and the key that gives its direction; warns where it is small.

    With two different keys ‖ΔW‖ = ‖v* − W k₀‖ / (‖k₀‖ cos), without covariance: the smaller the cosine, the larger.
    """
    cosine = float(torch.nn.functional.cosine_similarity(bare.double(), mean.double(), dim=0))
    if cosine < UNLIKE:
        logger.warning(
            "fact %s: the key of its bare prompt %r is unlike its keys behind other text (cosine %.2f). ROME divides "
            "by how far the two agree, so this edit is large, may break the model, and holds at that very prompt only: "
            "the subject may stand at the text's beginning, without a beginning-of-sequence token before it. "
            "editor=r_rome uses one key throughout",
            fact.id,
            fact.text,
            cosine,
        )
    return cosine


class Rome(Editor):
    """W ← W + (v* − W k₀) (C⁻¹ k*)ᵀ / ((C⁻¹ k*)ᵀ k₀), so that W k₀ = v* for the bare prompt's key k₀ (eq. 2)."""

    name = "rome"
    summary = "rank-one update of one MLP matrix, one fact at a time"
    source = "Meng et al. 2022, arXiv 2202.05262"
    Options = RomeOptions
    options: RomeOptions
    fact_rank = 1
    needs = "second moments, with mom2_adjustment=true only"
    not_routed = ""
    without_second_moments = "mom2_adjustment: false in edit_config"

    def template_plan(self) -> TemplatePlan:
        return TemplatePlan(self.options.context_template_length_params)

    def needs_second_moments(self) -> list[int]:
        return self.layers() if self.options.mom2_adjustment else []

    def compute(
        self, context: EditContext, facts: Sequence[Fact], history: Sequence[Mapping[str, Tensor]] = ()
    ) -> EditResult:
        (fact,) = facts
        deltas: dict[str, Delta] = {}
        details: dict[str, list[float]] = {"loss": [], "steps": [], "key_cosine": []}
        for layer in self.options.layers:  # several layers: each on the model that has the updates of those before it
            with temporarily_applied(context.model, deltas):
                targets = self._targets(context, fact, layer)
            key, value_change = self._solve(targets)
            mean_key = self._key(targets)
            details["key_cosine"].append(_likeness(fact, key, mean_key))
            direction = self._direction(context, layer, mean_key)
            site = site_of(context.model, context.architecture, layer)
            update = value_change / (key @ direction)
            deltas[site.parameter] = site.update(direction[:, None], update[:, None])
            details["loss"].append(float(targets.losses[0]))
            details["steps"].append(int(targets.steps[0]))
        return EditResult(deltas, details)

    def _targets(self, context: EditContext, fact: Fact, layer: int) -> Targets:
        o = self.options
        targets = optimise_targets(
            context.model,
            context.tokenizer,
            context.architecture,
            [fact],
            layer=layer,
            site="mlp",
            contexts=context.context_templates,
            steps=o.v_num_grad_steps,
            lr=o.v_lr,
            weight_decay=o.v_weight_decay,
            clamp_norm_factor=o.clamp_norm_factor,
            kl_factor=o.kl_factor,
            progress=context.progress,
        )
        return one_expert(context, fact, layer, targets, o.min_gate)

    def _key(self, targets: Targets) -> Tensor:
        """k* (f,), which gives the update its direction: the mean key over the context templates (eq. 3)."""
        return targets.keys[0].mean(dim=0)

    def _solve(self, targets: Targets) -> tuple[Tensor, Tensor]:
        """(k₀, v* − W k₀): key and wanted change of the output, of the bare prompt (context 0)."""
        return targets.keys[0, 0], targets.value[0] - targets.outputs[0, 0]

    def _direction(self, context: EditContext, layer: int, key: Tensor) -> Tensor:
        """u = C⁻¹ k* / ‖C⁻¹ k*‖ (f,), the input direction of the update; C = identity without `mom2_adjustment`."""
        if self.options.mom2_adjustment:
            module = context.architecture.down_projections[layer]
            # Cholesky solve in float64: an explicit float32 inverse is off by about 1e-3 at condition numbers of 1e6.
            factor = context.second_moments.cholesky(module, device=key.device)
            key = cholesky_solve(factor, key.double()[:, None])[:, 0].to(key.dtype)
        direction: Tensor = key / key.norm()
        return direction
