"""Second moments C = E[k kᵀ] of an MLP's keys: how often each direction of key space is used by ordinary text.

Uncentred, over all tokens of a corpus; k is the input of the MLP down-projection, so C is (f, f). ROME whitens its key
with C⁻¹, MEMIT adds λC to its normal equations, AlphaEdit projects onto C's null space.

The keys of a mixture's experts are stacked (`models.mixture`), and C is taken to be block-diagonal: (E, f, f), one
block for each expert. What is computed of it is block by block (`blocks`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lm_eval_edit._support.extras import found
from lm_eval_edit._support.files import hash_json, hash_tensor
from lm_eval_edit.errors import UserError
from lm_eval_edit.moments.blocks import BlockDiagonal, Matrix, filled
from lm_eval_edit.moments.files import Estimate, Reader, read_moments

logger = logging.getLogger("lm_eval_edit")


class SecondMoments:
    """E[k kᵀ] per module, with the factorisations editors ask for, each made once, on the device it is asked for on.

    The moments stay where they were given, those of a file on the CPU. A Cholesky factor takes 8 f² bytes of its device
    and a null space 8 f r, for as long as this object lives: 0.3 GiB for each of GPT-2 XL's layers (f = 6400), 0.9 GiB
    for each of LLaMA-7B's (f = 11008). While one is made, up to three times as much is taken on top.

    Args:
        moments: {module path of a down-projection, or the name of the parameter that holds a mixture's: (f, f) or
            (E, f, f) tensor E[k kᵀ], or what reads it when it is needed}.
        source: Where they come from, for errors and results.
    """

    def __init__(self, moments: Mapping[str, Tensor | Reader] | None = None, source: str = "none"):
        given = dict(moments or {})
        self._readers = {module: read for module, read in given.items() if not isinstance(read, Tensor)}
        self._moments = {module: Estimate(moment) for module, moment in given.items() if isinstance(moment, Tensor)}
        self.source = source
        self._factors: dict[tuple[str, float, torch.device], Matrix] = {}
        self._null_spaces: dict[tuple[str, float, torch.device], Matrix] = {}

    @classmethod
    def load(cls, given: str | Path | Mapping[str, Tensor] | SecondMoments | None) -> SecondMoments:
        """From a file, a folder, a {module: tensor} dict, or nothing.

        Files are safetensors (`<module>.second_moment`, `<module>.count`) or the published ROME and MEMIT `.npz`.

        Raises:
            UserError: the file is missing or holds no second moments.
        """
        if given is None or isinstance(given, SecondMoments):
            return given or cls()
        if isinstance(given, Mapping):
            return cls(given, "given")
        path = found(Path(given).expanduser())
        return cls(read_moments(path), str(path))

    def __contains__(self, module: str) -> bool:
        return module in self._moments or module in self._readers

    def __getitem__(self, module: str) -> Tensor:
        """(f, f) E[k kᵀ] of a module, or (E, f, f) of a mixture's experts.

        Raises:
            UserError: these moments do not have the module.
        """
        return self.estimate(module).moment

    def estimate(self, module: str) -> Estimate:
        """A module's moment and what it was estimated from.

        Raises:
            UserError: these moments do not have the module.
        """
        if module not in self:
            have = ", ".join([*self._moments, *self._readers]) or "none"
            raise UserError(f"second moments of {module} are needed; {self.source} has: {have}")
        if module not in self._moments:
            self._moments[module] = self._readers[module]()
        return self._moments[module]

    def is_stacked(self, module: str) -> bool:
        """Whether it is the moment of a mixture's experts, a block for each."""
        return self[module].ndim == 3

    def picks(self, module: str) -> Tensor | None:
        """(E,) how many tokens picked each of a mixture's experts; None if it is not known."""
        return self.estimate(module).picks

    def may_have(self, layer: int) -> bool:
        """Whether there is a module whose path holds a layer's number: all that can be known without the model."""
        return any(str(layer) in module.split(".") for module in (*self._moments, *self._readers))

    def count(self, module: str) -> int | None:
        """The number of tokens a module's moment was estimated from; None if it is not known."""
        return self.estimate(module).count

    def check_count(self, module: str) -> None:
        """Refuse a moment of fewer tokens than dimensions: it is singular, and means nothing in most directions.

        Raises:
            UserError: with both remedies.
        """
        found = self.estimate(module)
        count, f = found.count, found.moment.shape[-1]
        # Experts are filled up (`blocks.filled`).
        if not found.filled and found.picks is None and count is not None and count < f:
            raise UserError(
                f"the second moment of {module} ({self.source}) is from {count} tokens, fewer than its {f} dimensions, "
                f"so it is singular. Use several times as many tokens, or edit_mom2_regularisation=0.01 (adds that "
                f"share of C's mean eigenvalue to all of them: directions the few tokens never used then count alike)"
            )

    def regularised(self, share: float) -> SecondMoments:
        """C + share · (tr C / f) · I for every module: positive definite however few tokens C is from.

        Args:
            share: Of C's mean eigenvalue; 0 changes nothing.
        """
        if not share:
            return self

        def reader(module: str) -> Reader:
            def read() -> Estimate:
                moment = self._filled(module).clone()
                diagonal = moment.diagonal(dim1=-2, dim2=-1)
                diagonal.add_(share * diagonal.mean())
                return replace(self.estimate(module), moment=moment, filled=True)

            return read

        modules = [*self._moments, *(module for module in self._readers if module not in self._moments)]
        return SecondMoments({m: reader(m) for m in modules}, f"{self.source}, regularised by {share:g}")

    def _filled(self, module: str) -> Tensor:
        """C as it is used: rarely picked experts' blocks with what they lack."""
        found = self.estimate(module)
        return found.moment if found.filled or found.picks is None else filled(found.moment, found.picks)

    def symmetric(self, module: str, device: torch.device | str | None = None) -> Tensor:
        """(f, f) C, or (E, f, f), in float64, symmetric to the last bit.

        Args:
            module: Whose C.
            device: Where it is wanted; where C lies by default.

        Raises:
            UserError: C holds values that are not finite.
        """
        moment = self._filled(module).to(device=device, dtype=torch.float64)
        if not bool(torch.isfinite(moment).all()):
            raise UserError(
                f"the second moment of {module} ({self.source}) holds values that are not finite, as sums kept in "
                f"float16 do; accumulate it in float32"
            )
        return (moment + moment.mT) / 2

    def cholesky(self, module: str, ridge: float = 0.0, device: torch.device | str | None = None) -> Matrix:
        """(f, f) lower Cholesky factor L of C + ridge I = L Lᵀ, in float64, made once per module, ridge and device.

        Args:
            module: Whose C.
            ridge: Added to its diagonal.
            device: Where it is made and kept; where C lies by default.

        Raises:
            UserError: C + ridge I is not positive definite (C estimated from too few tokens).
        """
        made = (module, ridge, self._place(module, device))
        if made not in self._factors:
            moment = self.symmetric(module, device)
            moment.diagonal(dim1=-2, dim2=-1).add_(ridge)
            factor, failed = torch.linalg.cholesky_ex(moment)
            if bool(failed.any()):
                raise UserError(
                    f"the second moment of {module} ({self.source}) is not positive definite: it was estimated from "
                    f"too few tokens for its {moment.shape[-1]} dimensions. Use more tokens, several times as many"
                )
            self._factors[made] = BlockDiagonal(list(factor)) if factor.ndim == 3 else factor
        return self._factors[made]

    def _place(self, module: str, device: torch.device | str | None) -> torch.device:
        return self[module].device if device is None else torch.device(device)

    def median_eigenvalue(self, modules: Sequence[str]) -> float:
        """The median of the eigenvalues of some modules' moments, all together: half of the directions lie below it."""
        values = [torch.linalg.eigvalsh(self.symmetric(module)).flatten().cpu() for module in modules]
        return _median(torch.cat(values))

    def null_space(self, module: str, threshold: float, device: torch.device | str | None = None) -> Matrix:
        """(f, r) orthonormal directions of key space in which text has a second moment below `threshold`, in float64.

        The eigenvectors of C whose eigenvalue is smaller; P = U Uᵀ projects onto them. Made once per module, threshold
        and device. Each of a mixture's experts has a null space of its own.

        Args:
            module: Whose C.
            threshold: Largest second moment of a direction that edits may use, exclusive.
            device: Where they are computed and kept; where C lies by default.

        Raises:
            UserError: there is no such direction.
        """
        made = (module, threshold, self._place(module, device))
        if made not in self._null_spaces:
            values, vectors = torch.linalg.eigh(self.symmetric(module, device))
            r = (values < threshold).sum(-1)  # eigenvalues ascend
            if not int(r.sum()):
                low, middle, high = (float(value) for value in (values.min(), values.median(), values.max()))
                raise UserError(
                    f"nullspace_threshold={threshold:g}: the second moment of {module} ({self.source}) has no "
                    f"eigenvalue below it, so there is no null space to edit in. Its eigenvalues lie "
                    f"between {low:.3g} and {high:.3g} with median {middle:.3g}: give a larger nullspace_threshold"
                )
            if int(r.sum()) == values.numel():
                logger.warning(
                    "nullspace_threshold=%g is above every eigenvalue of the second moment of %s (the largest is "
                    "%.3g): no direction of ordinary text is protected",
                    threshold,
                    module,
                    float(values.max()),
                )
            if vectors.ndim == 3:
                blocks = [own[:, :n].contiguous() for own, n in zip(vectors, r.tolist(), strict=True)]
                self._null_spaces[made] = BlockDiagonal(blocks)
            else:
                self._null_spaces[made] = vectors[:, : int(r)].contiguous()
        return self._null_spaces[made]

    def picks_record(self, modules: Sequence[str]) -> dict[str, list[int]]:
        """How many tokens picked each expert, for a record, of those modules that are a mixture's."""
        found = {module: self.picks(module) for module in modules}
        return {module: picks.tolist() for module, picks in found.items() if picks is not None}

    def sha256(self, modules: list[str]) -> str:
        """A hash of the moments of these modules."""
        return hash_json({module: hash_tensor(self[module]) for module in modules})


def _median(values: Tensor) -> float:
    """The middle of many values; torch's quantile takes 2²⁴ at most, and a mixture's layers have more."""
    ordered = values.sort().values
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return float(low.lerp(high, 0.5))
