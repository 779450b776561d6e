"""Keys of many requests at the subject's last token, and the solves that turn them into update directions.

What MEMIT (Meng et al. 2023, arXiv 2210.07229), EMMET (Gupta et al. 2024, arXiv 2403.14236) and AlphaEdit (Fang et al.
2025, arXiv 2410.02355) share. All of them change W by A Rᵀ: R (d, n) is what the outputs lack, and A (f, n) says
along which directions of key space it is added. K (f, n) holds one key per request, C = E[k kᵀ] is (f, f).

No solve factors an f x f matrix for a small batch: C is fixed, so its Cholesky factor is made once, and the n requests
enter through an n x n system. Where a mixture's experts are edited, f is that of all of them together, and C has a
factor for each (`moments.blocks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm_eval_edit.editors._shared.rows import prompt_row
from lm_eval_edit.editors._shared.subject_passes import SubjectPass
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.moments.blocks import Matrix, cholesky_solve
from lm_eval_edit.moments.second_moments import SecondMoments

ROWS_AT_ONCE = 512  # rows of one forward pass without gradients: bounds its memory
KEPT_NUMBERS = 2**28  # of what enters a block, kept from pass to pass: 1 GiB in float32


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


class SubjectStatesInTurn:
    """States at the subjects, asked for again and again while layers are edited from the lowest up.

    Args:
        context: With nested context templates, of which the first is the bare `{}`.
        facts: The n requests.
        output_layer: The block whose output for the bare prompts is wanted.
        again: Whether states are asked for more than once, so that what later passes begin with is worth keeping.
    """

    def __init__(self, context: EditContext, facts: Sequence[Fact], output_layer: int, again: bool = True):
        self._sizes = [len(templates) for templates in context.context_templates]
        templates = [template for templates in context.context_templates for template in templates]
        step, room = max(1, ROWS_AT_ONCE // len(templates)), KEPT_NUMBERS if again else 0
        self._passes = []
        for start in range(0, len(facts), step):
            rows = [
                prompt_row(context.tokenizer, fact.behind(template), fact.subject)
                for fact in facts[start : start + step]
                for template in templates
            ]
            one = SubjectPass(context.model, context.architecture, rows, output_layer)
            one.keep(room > 0)
            room -= one.kept_numbers(context.architecture.hidden_size)
            self._passes.append(one)

    def states(self, layers: Sequence[int]) -> SubjectStates:
        """Keys of some layers, none above the output's, and the output, from one pass that ends there.

        Until the next time only the lowest of these layers and those above it may be edited; without any, none.
        """
        parts = []
        for one in self._passes:
            keys, outputs = one.run(layers)
            means = {layer: _mean_of_means(keys[layer], self._sizes) for layer in layers}
            parts.append((means, outputs[:: sum(self._sizes)]))
        return SubjectStates(
            {layer: torch.cat([keys[layer] for keys, _ in parts]).T for layer in layers},
            torch.cat([outputs for _, outputs in parts]),
        )


def subject_states(
    context: EditContext, facts: Sequence[Fact], layers: Sequence[int], output_layer: int
) -> SubjectStates:
    """Keys of some layers and the output of one block, as `SubjectStatesInTurn` gives them, once."""
    return SubjectStatesInTurn(context, facts, output_layer, again=False).states(layers)


def _mean_of_means(keys: Tensor, sizes: Sequence[int]) -> Tensor:
    """(n, f) from the keys (n * sum(sizes), f) of all templates: the mean of the means over each type's templates."""
    per_type = keys.view(-1, sum(sizes), keys.shape[-1]).split(list(sizes), dim=1)
    return torch.stack([part.mean(dim=1) for part in per_type]).mean(dim=0)


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
