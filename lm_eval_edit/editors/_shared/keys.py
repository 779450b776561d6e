"""Keys of many requests at the subject's last token, and the solves that turn them into update directions.

What MEMIT (Meng et al. 2023, arXiv 2210.07229), EMMET (Gupta et al. 2024, arXiv 2403.14236) and AlphaEdit (Fang et al.
2025, arXiv 2410.02355) share. All of them change W by A Rᵀ: R (d, n) is what the outputs lack, and A (f, n) says
along which directions of key space it is added. K (f, n) holds one key per request, C = E[k kᵀ] is (f, f).

No solve factors an f x f matrix for a small batch: C is fixed, so its Cholesky factor is made once, and the n requests
enter through an n x n system. Where a mixture's experts are edited, f is that of all of them together, and C has a
factor for each (`moments.blocks`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lm_eval_edit.editors._shared.forward import by_row
from lm_eval_edit.editors._shared.rows import Row, prompt_row
from lm_eval_edit.editors._shared.sites import site_of
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.models.devices import input_device
from lm_eval_edit.moments.blocks import Matrix, cholesky_solve
from lm_eval_edit.moments.second_moments import SecondMoments

ROWS_AT_ONCE = 512  # rows of one forward pass without gradients: bounds its memory


@dataclass(frozen=True)
class SubjectStates:
    """What the model computes at the subjects' last tokens, for n requests.

    Attributes:
        keys: {layer: (f, n)} what the edited matrix reads (`sites`: the MLP down-projection's input), in float64: per
            request the mean over the template types of the mean over each type's templates, as the published MEMIT has
            it. A type weighs as much as another however many templates it has.
        outputs: (n, d) output of a whole block for the bare prompts, in float64.
    """

    keys: dict[int, Tensor]
    outputs: Tensor


class _Reached(Exception):
    """Ends a forward pass at the deepest block that is wanted."""


@torch.no_grad()
def subject_states(
    context: EditContext, facts: Sequence[Fact], layers: Sequence[int], output_layer: int
) -> SubjectStates:
    """Keys of some layers and the output of one block, from one pass that ends at that block.

    Args:
        context: With nested context templates, of which the first is the bare `{}`.
        facts: The n requests.
        layers: Layers whose keys are wanted, none above `output_layer`.
        output_layer: The block whose output for the bare prompts is wanted.
    """
    sizes = [len(templates) for templates in context.context_templates]
    templates = [template for templates in context.context_templates for template in templates]
    step = max(1, ROWS_AT_ONCE // len(templates))
    parts = []
    for start in range(0, len(facts), step):
        rows = [
            prompt_row(context.tokenizer, fact.behind(template), fact.subject)
            for fact in facts[start : start + step]
            for template in templates
        ]
        keys, outputs = _partial_pass(context, rows, layers, output_layer)
        parts.append(({layer: _mean_of_means(keys[layer], sizes) for layer in layers}, outputs[:: len(templates)]))
    return SubjectStates(
        {layer: torch.cat([keys[layer] for keys, _ in parts]).T for layer in layers},
        torch.cat([outputs for _, outputs in parts]),
    )


def _mean_of_means(keys: Tensor, sizes: Sequence[int]) -> Tensor:
    """(n, f) from the keys (n * sum(sizes), f) of all templates: the mean of the means over each type's templates."""
    per_type = keys.view(-1, sum(sizes), keys.shape[-1]).split(list(sizes), dim=1)
    return torch.stack([part.mean(dim=1) for part in per_type]).mean(dim=0)


def _partial_pass(
    context: EditContext, rows: Sequence[Row], layers: Sequence[int], output_layer: int
) -> tuple[dict[int, Tensor], Tensor]:
    """({layer: (R, f)}, (R, d)) at the rows' last subject tokens, in float64.

    The rows end there: a decoder's states do not depend on what follows, so padding on the right needs no mask, and
    every token has the position it has alone.
    """
    model, architecture = context.model, context.architecture
    device = input_device(model)
    subjects = [torch.tensor(row.ids[: row.subject_last + 1]) for row in rows]
    input_ids = pad_sequence(subjects, batch_first=True).to(device)
    last = torch.tensor([row.subject_last for row in rows])
    keys: dict[int, Tensor] = {}
    outputs: list[Tensor] = []

    def at_subjects(states: Tensor) -> Tensor:
        states = by_row(states, len(rows))
        return states[torch.arange(len(rows), device=states.device), last.to(states.device)]

    def keep_key(layer: int) -> Callable[[Tensor], None]:
        return lambda key: keys.update({layer: key.double()})

    def keep_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        outputs.append(at_subjects(output[0] if isinstance(output, tuple) else output).double())
        raise _Reached

    with contextlib.ExitStack() as hooks:
        for layer in layers:
            hooks.callback(site_of(model, architecture, layer).watch_keys(at_subjects, keep_key(layer)).remove)
        block = model.get_submodule(architecture.blocks[output_layer])
        hooks.callback(block.register_forward_hook(keep_output).remove)
        with contextlib.suppress(_Reached):
            model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False)
    return keys, outputs[0]


# ----------------------------------------------------------------------------------------------------------- the solves


def solve_normal_equations(moments: SecondMoments, module: str, weight: float, keys: Tensor) -> Tensor:
    """A (f, n) with (λC + K Kᵀ) A = K, in float64 (MEMIT eq. 14: A Rᵀ is the least-squares update that keeps C's keys).

    Args:
        moments: Hold C of `module`.
        module: Path of the down-projection.
        weight: λ, how much the text's keys weigh against the requests'.
        keys: K (f, n) in float64.

    Raises:
        UserError: the system is not positive definite.
    """
    f, n = keys.shape
    # Below, the triangular solves with the cached factor cost less than a new factorisation, and always less than one
    # of all experts together.
    if 3 * n <= f or moments.is_stacked(module):
        return solve_small_batch(moments.cholesky(module, device=keys.device), weight, keys)
    return solve_large_batch(moments.symmetric(module, keys.device), weight, keys)


def solve_small_batch(factor: Matrix, weight: float, keys: Tensor, ridge: float = 1.0) -> Tensor:
    """(λC)⁻¹K (Kᵀ(λC)⁻¹K + ρI)⁻¹ through C's Cholesky factor: 2f²n + n³ work.

    With ρ = 1 this is (λC + K Kᵀ)⁻¹K by the push-through identity; EMMET's update has another ρ.

    Args:
        factor: (f, f) lower L with C = L Lᵀ, whole or block by block.
        weight: λ.
        keys: K (f, n).
        ridge: ρ.

    Raises:
        UserError: the keys depend on one another and ρ is 0, or they are not finite.
    """
    whitened = cholesky_solve(factor, keys) / weight
    system = keys.T @ whitened
    system.diagonal().add_(ridge)
    remedy = "" if ridge else ". A fact may be given twice: leave one out, or give emmet_lambda above 0"
    return torch.cholesky_solve(whitened.T, cholesky(system, keys.shape[1], remedy, 0.0 if ridge else 1e-13)).T


def solve_large_batch(moment: Tensor, weight: float, keys: Tensor) -> Tensor:
    """(λC + K Kᵀ)⁻¹K by a Cholesky factorisation of the whole: f³/3 + 3f²n work.

    Args:
        moment: C (f, f).
        weight: λ.
        keys: K (f, n).

    Raises:
        UserError: λC + K Kᵀ is not positive definite.
    """
    f, n = keys.shape
    remedy = (
        f". The second moment may have been estimated from too few tokens for {f} dimensions: use several times as many"
    )
    return torch.cholesky_solve(keys, cholesky(weight * moment + keys @ keys.T, n, remedy))


def cholesky(system: Tensor, n_facts: int, remedy: str = "", round_off: float = 0.0) -> Tensor:
    """The lower Cholesky factor of the system that the keys of `n_facts` facts give.

    Args:
        system: Symmetric.
        n_facts: For the error.
        remedy: What the error says to do about a system that is not positive definite.
        round_off: The share of the largest squared pivot below which another counts as zero.

    Raises:
        UserError: it is not positive definite, or not finite.
    """
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(system)
    pivots = factor.diagonal() ** 2
    if bool(failed) or bool(pivots.min() < round_off * pivots.max()):
        finite = bool(torch.isfinite(system).all())
        what = "is not positive definite" if finite else "holds values that are not finite: the model's keys overflow"
        raise UserError(f"the system of {n_facts} facts' keys {what}{remedy if finite else ''}")
    return factor
