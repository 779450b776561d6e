"""BetaEdit: AlphaEdit that weighs ordinary text inside its solve, too, and looks for the null space again as it goes.

BetaEdit, IJCAI 2026 (arXiv 2605.09285). With P = U Uᵀ the projector onto the null space, K_p the keys of the t earlier
edits and C = E[k kᵀ]

    Δᵀ = (P (K Kᵀ + K_p K_pᵀ + λ₁C) + λ₂I)⁻¹ P K Rᵀ

and whenever τ more edits have been made, P is found anew: the eigenvectors of (K_p K_pᵀ / t + λ₁C) / (λ₁ + 1) whose
eigenvalues are below the threshold. λ₁ is `mom2_update_weight`, λ₂ is `L2`, τ is `refresh_every`. With λ₁ = 0 and
without a refresh it is AlphaEdit. The authors' code ends a run when the update of an operation of n facts has a norm
above 20 √n; here the guards that hold for every method do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lm_eval_edit.editors._shared.earlier_keys import keys_name
from lm_eval_edit.editors._shared.history import History
from lm_eval_edit.editors._shared.keys import cholesky
from lm_eval_edit.editors._shared.scale import MEMIT_CLOSED, NOTHING, update_weight
from lm_eval_edit.editors.alphaedit import AlphaEdit, AlphaEditOptions
from lm_eval_edit.editors.base import EditContext, option
from lm_eval_edit.facts.fact import Fact


@dataclass(frozen=True)
class BetaEditOptions(AlphaEditOptions):
    """Hyper-parameters of BetaEdit, under EasyEdit's names where AlphaEdit and MEMIT have them."""

    mom2_update_weight: float | None = option(
        "λ₁, how much ordinary text weighs within the null space",
        from_model="as MEMIT's: such that the first operation alone would close as much as at GPT-J's settings",
    )
    refresh_every: int | None = option(
        "τ, edits after which the null space is found anew; none: never", default=1000, tuned=False, least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mom2_update_weight is not None and self.mom2_update_weight < 0:
            raise ValueError(f"mom2_update_weight={self.mom2_update_weight:g}: want a number of at least 0")


@dataclass(frozen=True)
class _NullSpace:
    """U (f, r) as it stands after some operations.

    Attributes:
        gram: K_p K_pᵀ (f, f) of all of them, in float64; None before the first.
        edits, since: How many facts they hold, all and since U was found.
        found: How often U was found anew.
        basis: U, or None for that of C alone.
    """

    gram: Tensor | None = None
    edits: int = 0
    since: int = 0
    found: int = 0
    basis: Tensor | None = None


class BetaEdit(AlphaEdit):
    """W ← W + R Kᵀ P (P (K Kᵀ + K_p K_pᵀ + λ₁C) + λ₂I)⁻¹, P found anew every τ edits."""

    name = "betaedit"
    summary = "AlphaEdit with ordinary text inside the solve, its null space found anew as edits come"
    source = "BetaEdit 2026, arXiv 2605.09285"
    Options = BetaEditOptions
    unused_fields = frozenset(("P_loc",))

    def _from_model(self, context: EditContext, facts: Sequence[Fact]) -> dict[str, float]:
        found = super()._from_model(context, facts)
        if self.options.mom2_update_weight is None:
            groups = len(self._groups()[0])
            found["mom2_update_weight"] = update_weight(context, facts, self.layers(), MEMIT_CLOSED, shared_by=groups)
        return found

    def _directions(
        self,
        context: EditContext,
        layer: int,
        keys: Tensor,
        history: Sequence[Mapping[str, Tensor]],
        scale: Mapping[str, float] = NOTHING,
    ) -> Tensor:
        """A (f, n) = U (G + Uᵀ(K_p K_pᵀ + K Kᵀ)U)⁻¹ Uᵀ K with G = λ₁ UᵀCU + λ₂I = H Hᵀ: in H⁻¹Uᵀ keys, G is I."""
        module = context.architecture.down_projections[layer]
        values = {
            name: float(scale.get(name, getattr(self.options, name)))
            for name in ("nullspace_threshold", "L2", "mom2_update_weight")
        }
        threshold, ridge, weight = values.values()
        moment = context.second_moments.symmetric(module, keys.device)
        space = self._null_space(history, module, moment, threshold, weight, keys)
        basis = space.basis
        if basis is None:
            basis = self._basis(context, layer, threshold).to(keys.device)
        own = weight * (basis.T @ moment @ basis)
        own.diagonal().add_(ridge)
        root = cholesky(own, keys.shape[1])

        def into(given: Tensor) -> Tensor:
            inside: Tensor = torch.linalg.solve_triangular(root, basis.T @ given, upper=False)
            return inside

        setting = (threshold, ridge, weight, space.found)
        earlier = self._earlier(history, module, basis.shape[1], keys, into, setting)
        solved: Tensor = torch.linalg.solve_triangular(root.T, earlier.solve(into(keys)), upper=True)
        return basis @ solved

    def _null_space(
        self,
        history: Sequence[Mapping[str, Tensor]],
        module: str,
        moment: Tensor,
        threshold: float,
        weight: float,
        like: Tensor,
    ) -> _NullSpace:
        every = self.options.refresh_every
        if every is None:
            return _NullSpace()

        def add(space: _NullSpace, state: Mapping[str, Tensor]) -> _NullSpace:
            keys = state[keys_name(module)].to(like.device, like.dtype)
            n = keys.shape[1]
            own = keys @ keys.T
            gram = own if space.gram is None else space.gram + own
            space = replace(space, gram=gram, edits=space.edits + n, since=space.since + n)
            if space.since < every:
                return space
            values, vectors = torch.linalg.eigh((gram / space.edits + weight * moment) / (weight + 1))
            basis = vectors[:, values < threshold].contiguous()
            return replace(space, since=0, found=space.found + 1, basis=basis)

        name = ("null space", type(self), module, like.device, threshold, weight, every)
        return History.of(history).summed(name, _NullSpace, add)
