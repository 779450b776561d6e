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
from dataclasses import dataclass

import torch
from torch import Tensor

from lm_eval_edit.editors._shared.earlier_keys import keys_name
from lm_eval_edit.editors._shared.history import History
from lm_eval_edit.editors._shared.inverse_root import InverseRoot
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


@dataclass
class _NullSpace:
    """U (f, r) as it stands after some operations, and their keys within it.

    Attributes:
        basis: U.
        root: H (r, r), lower triangular, with H Hᵀ = λ₁ UᵀCU + λ₂I.
        earlier: The root of (I + V Vᵀ)⁻¹, V = H⁻¹ Uᵀ K_p.
        gram: K_p K_pᵀ (f, f) of all of them, in float64; None before the first, and where U is never found anew.
        edits, since: How many facts they hold, all and since U was found.
    """

    basis: Tensor
    root: Tensor
    earlier: InverseRoot
    gram: Tensor | None = None
    edits: int = 0
    since: int = 0

    def into(self, given: Tensor) -> Tensor:
        """H⁻¹ Uᵀ x."""
        inside: Tensor = torch.linalg.solve_triangular(self.root, self.basis.T @ given, upper=False)
        return inside


class BetaEdit(AlphaEdit):
    """W ← W + R Kᵀ P (P (K Kᵀ + K_p K_pᵀ + λ₁C) + λ₂I)⁻¹, P found anew every τ edits."""

    name = "betaedit"
    summary = "AlphaEdit with ordinary text inside the solve, its null space found anew as edits come"
    source = "BetaEdit 2026, arXiv 2605.09285"
    Options = BetaEditOptions
    unused_fields = frozenset(("P_loc",))
    not_routed = "its null space is found anew from all earlier keys, which would mix the experts' own"

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
        values = [
            float(scale.get(name, getattr(self.options, name)))
            for name in ("nullspace_threshold", "L2", "mom2_update_weight")
        ]
        threshold, ridge, weight = values
        every = self.options.refresh_every

        def within(basis: Tensor, gram: Tensor | None = None, edits: int = 0) -> _NullSpace:
            own = weight * (basis.T @ context.second_moments.symmetric(module, keys.device) @ basis)
            own.diagonal().add_(ridge)
            found = _NullSpace(basis, cholesky(own, edits), InverseRoot(basis.shape[1]), gram, edits)
            if gram is not None:  # all keys at once: no earlier one is read again
                found.earlier = InverseRoot.of(found.into(found.into(gram).T))
            return found

        def start() -> _NullSpace:
            basis = self._basis(context, layer, threshold)
            assert isinstance(basis, Tensor), "experts are refused"
            return within(basis.to(keys.device))

        def add(space: _NullSpace, state: Mapping[str, Tensor]) -> _NullSpace:
            new = state[keys_name(module)].to(keys.device, keys.dtype)
            if every is not None:
                own = new @ new.T
                space.gram = own if space.gram is None else space.gram.add_(own)
                space.edits, space.since = space.edits + new.shape[1], space.since + new.shape[1]
                if space.since >= every:
                    moment = context.second_moments.symmetric(module, keys.device)
                    vectors = _below(threshold, (space.gram / space.edits + weight * moment) / (weight + 1))
                    return within(vectors, space.gram, space.edits)
            space.earlier.absorb(space.into(new))
            return space

        space = History.of(history).summed((type(self), module, keys.device, *values, every), start, add)
        solved: Tensor = torch.linalg.solve_triangular(space.root.T, space.earlier.solve(space.into(keys)), upper=True)
        directions: Tensor = space.basis @ solved
        return directions


def _below(threshold: float, moment: Tensor) -> Tensor:
    """Eigenvectors of a symmetric matrix whose eigenvalues are below the threshold, as columns."""
    values, vectors = torch.linalg.eigh(moment)
    found: Tensor = vectors[:, values < threshold].contiguous()
    return found
