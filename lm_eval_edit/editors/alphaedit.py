"""AlphaEdit: MEMIT's update, projected onto the directions of key space that ordinary text does not use.

Fang et al., *AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models*, ICLR 2025 (arXiv 2410.02355).
P projects onto the eigenvectors of C = E[k kᵀ] with small eigenvalues, so that ΔW k ≈ 0 for the keys k of text. Keys of
earlier operations are protected too; they are what this editor leaves in the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lm_eval_edit.editors._shared.batch_options import BatchOptions
from lm_eval_edit.editors._shared.earlier_keys import KeepsKeys
from lm_eval_edit.editors._shared.scale import MEMIT_CLOSED, NOTHING, norm_weight
from lm_eval_edit.editors._shared.sites import site_of
from lm_eval_edit.editors.base import EditContext, EditResult, option
from lm_eval_edit.editors.memit import Memit
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.moments.blocks import Matrix


@dataclass(frozen=True)
class AlphaEditOptions(BatchOptions):
    """Hyper-parameters of AlphaEdit, under EasyEdit's names."""

    nullspace_threshold: float | None = option(
        "eigenvalues of C below it span the null space", from_model="the median eigenvalue over the edited layers"
    )
    L2: float | None = option(
        "weight of the update's own norm",
        from_model="such that the first operation closes as much of the residual as MEMIT does at GPT-J's settings",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("nullspace_threshold", "L2"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name):g}: want a positive number")


class AlphaEdit(KeepsKeys, Memit):
    """W ← W + R Kᵀ P (K_p K_pᵀ P + K Kᵀ P + αI)⁻¹, K_p the keys of earlier operations, α = `L2`; else as MEMIT."""

    name = "alphaedit"
    summary = "MEMIT's update within the null space of ordinary text's keys"
    source = "Fang et al. 2025, arXiv 2410.02355"
    Options = AlphaEditOptions
    unused_fields = frozenset(("mom2_update_weight", "P_loc"))

    def compute(
        self, context: EditContext, facts: Sequence[Fact], history: Sequence[Mapping[str, Tensor]] = ()
    ) -> EditResult:
        result = super().compute(context, facts, history)
        threshold = result.details.get("from_model", {}).get("nullspace_threshold", self.options.nullspace_threshold)
        result.details["null_space"] = {
            str(layer): self._basis(context, layer, threshold).shape[1] for layer in self.layers()
        }
        return result

    def _from_model(self, context: EditContext, facts: Sequence[Fact]) -> dict[str, float]:
        o, found = self.options, {}
        threshold, weight = o.nullspace_threshold, o.L2
        if threshold is None:
            modules = [context.architecture.down_projections[layer] for layer in self.layers()]
            found["nullspace_threshold"] = threshold = context.second_moments.median_eigenvalue(modules)
        if weight is None:
            bases = {layer: self._basis(context, layer, threshold) for layer in self.layers()}
            found["L2"] = norm_weight(context, facts, bases, MEMIT_CLOSED, len(self._groups()[0]))
        return found

    def _basis(self, context: EditContext, layer: int, threshold: float) -> Matrix:
        """U (f, r), with P = U Uᵀ, where the layer's weight is."""
        site = site_of(context.model, context.architecture, layer)
        return context.second_moments.null_space(site.name, threshold, site.weight.device)

    def _directions(
        self,
        context: EditContext,
        layer: int,
        keys: Tensor,
        history: Sequence[Mapping[str, Tensor]],
        scale: Mapping[str, float] = NOTHING,
    ) -> Tensor:
        """A (f, n) = (P (K_p K_pᵀ + K Kᵀ) + αI)⁻¹ P K.

        With P = U Uᵀ, U (f, r), and M = Uᵀ [K_p K] this is U (M Mᵀ + αI)⁻¹ Uᵀ K: a symmetric positive definite r x r
        system. Divided by √α its earlier keys are taken up as they come.
        """
        module = context.architecture.down_projections[layer]
        threshold = scale.get("nullspace_threshold", self.options.nullspace_threshold)
        root = float(scale.get("L2", self.options.L2)) ** 0.5
        basis = self._basis(context, layer, threshold).to(keys.device)

        def projected(given: Tensor) -> Tensor:
            inside: Tensor = basis.T @ given / root
            return inside

        earlier = self._earlier(history, module, basis.shape[1], keys, projected, (threshold, root))
        directions: Tensor = basis @ earlier.solve(projected(keys)) / root
        return directions
