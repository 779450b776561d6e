"""Count floating-point operations: a measure of work that no other user of the machine can disturb."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


def _decomposed(matrix: torch.Tensor, share: float, sides: torch.Tensor | None = None) -> float:
    n = matrix.shape[-1]
    return share * n**3 + (2 * n**2 * sides.shape[-1] if sides is not None else 0)


class Operations(TorchDispatchMode):
    """Counts the multiplications and additions of matrix products, attention and decompositions; `total` so far."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = function(*args, **(kwargs or {}))
        packet = function._overloadpacket
        if packet in flop_registry:
            self.total += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        elif packet == aten.addmm_:
            self.total += 2 * args[1].shape[0] * args[1].shape[1] * args[2].shape[1]
        elif packet == aten._linalg_solve_ex:
            self.total += _decomposed(args[0], 2 / 3, args[1])
        elif packet == aten.linalg_cholesky_ex:
            self.total += _decomposed(args[0], 1 / 3)
        elif packet in (aten.cholesky_solve, aten._cholesky_solve_helper):
            self.total += _decomposed(args[1], 0, args[0])
        return out
