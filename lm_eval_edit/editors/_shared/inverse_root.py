"""A square root of (I + V Vᵀ)⁻¹ for columns V that come a few at a time: recursive least squares in square-root form.

Every method that keeps earlier keys solves (G + K_p K_pᵀ + K Kᵀ) A = K with a fixed G, λC in MEMIT's normal equations,
αI within AlphaEdit's null space. With G = H Hᵀ and V = H⁻¹ K_p this is a solve with I + V Vᵀ, and taking n more keys
up costs O(m² n) however many came before: no earlier key is read again, and no m x m matrix is factored. Andrews'
form of the update (*A square root formulation of the Kalman covariance equations*, AIAA Journal 1968) keeps S Sᵀ
symmetric and positive definite whatever the rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lm_eval_edit.editors._shared.keys import cholesky


class InverseRoot:
    """S (m, m) with S Sᵀ = (I + V Vᵀ)⁻¹, V the columns absorbed so far.

    While there are fewer than m / 4 columns it is held as I − X Yᵀ, X and Y as wide as V; then it takes 8 m² bytes.

    Args:
        size: m.
    """

    def __init__(self, size: int):
        self.size = size
        self._thin: tuple[Tensor, Tensor] | None = None  # X (m, N), Y (m, N)
        self._dense: Tensor | None = None

    @classmethod
    def of(cls, gram: Tensor) -> InverseRoot:
        """The root with V Vᵀ (m, m) given as a whole, in float64, however many columns it is the sum of.

        Raises:
            UserError: it is not finite.
        """
        m = len(gram)
        system = (gram + gram.T) / 2
        system.diagonal().add_(1.0)
        one = torch.eye(m, dtype=gram.dtype, device=gram.device)
        found = cls(m)
        found._dense = torch.linalg.solve_triangular(cholesky(system, m).T, one, upper=True)  # L⁻ᵀ
        return found

    def absorb(self, columns: Tensor) -> InverseRoot:
        """Take up columns (m, n) in float64, and return this.

        Raises:
            UserError: they are not finite.
        """
        for part in columns.split(max(1, self.size // 4), dim=1):
            self._absorb(part)
        return self

    def _absorb(self, columns: Tensor) -> None:
        inner = self._transposed(columns)  # w (m, n) = Sᵀ v
        n = inner.shape[1]
        one = torch.eye(n, dtype=inner.dtype, device=inner.device)
        factor = cholesky(inner.T @ inner + one, n)  # F Fᵀ = I + wᵀw
        # S ← S (I − w F⁻ᵀ (I + F)⁻¹ wᵀ): the bracket times its transpose is I − w (I + wᵀw)⁻¹ wᵀ.
        gain = torch.linalg.solve_triangular(factor + one, one, upper=False)
        gain = torch.linalg.solve_triangular(factor.T, gain, upper=True)
        step = self._times(inner) @ gain
        if self._dense is None and n + (0 if self._thin is None else self._thin[0].shape[1]) > self.size // 4:
            self._dense = torch.eye(self.size, dtype=inner.dtype, device=inner.device)
            if self._thin is not None:
                left, right = self._thin
                self._dense.addmm_(left, right.T, alpha=-1)
            self._thin = None
        if self._dense is not None:
            self._dense.addmm_(step, inner.T, alpha=-1)
        elif self._thin is None:
            self._thin = step, inner
        else:
            left, right = self._thin
            self._thin = torch.cat([left, step], dim=1), torch.cat([right, inner], dim=1)

    def solve(self, columns: Tensor) -> Tensor:
        """(m, n): (I + V Vᵀ + v vᵀ)⁻¹ v for columns v (m, n), which are not absorbed.

        With u = Sᵀ v this is S u (I + uᵀu)⁻¹, or by the push-through identity S (I + u uᵀ)⁻¹ u: the smaller system.

        Raises:
            UserError: they are not finite.
        """
        inner = self._transposed(columns)
        m, n = inner.shape
        system = inner.T @ inner if n <= m else inner @ inner.T
        system.diagonal().add_(1.0)
        factor = cholesky(system, n)
        solved = torch.cholesky_solve(inner.T if n <= m else inner, factor)
        return self._times(solved.T if n <= m else solved)

    def _times(self, columns: Tensor) -> Tensor:
        """S x."""
        if self._dense is not None:
            return self._dense @ columns
        if self._thin is None:
            return columns
        left, right = self._thin
        return columns - left @ (right.T @ columns)

    def _transposed(self, columns: Tensor) -> Tensor:
        """Sᵀ x."""
        if self._dense is not None:
            return self._dense.T @ columns
        if self._thin is None:
            return columns
        left, right = self._thin
        return columns - right @ (left.T @ columns)
