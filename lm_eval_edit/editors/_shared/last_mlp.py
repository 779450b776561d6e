"""The last block's MLP where its output is read, and nowhere else.

Above the last attention every position is for itself, so a pass that reads a few positions needs its largest matrices
at those alone. Whether a module is such an MLP is seen in a pass, not taken from its name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lm_eval_edit.models.architecture import Architecture


class LastMlp:
    """What stands around the last block's down-projection, if it maps each position by itself.

    Args:
        model: A causal language model.
        architecture: Its parts.
    """

    def __init__(self, model: nn.Module, architecture: Architecture):
        path = architecture.down_projections[-1].rpartition(".")[0]
        # In some decoders the projection stands in the block itself, which mixes positions.
        self._module = model.get_submodule(path) if path.startswith(architecture.blocks[-1] + ".") else None
        self._by_itself: list[bool] = []

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block a pass shows whether the module takes one tensor, and maps each position by itself.

        That is tried when the block ends: enter it before hooks that must not hear of the trial.
        """
        if self._module is None:
            yield
            return
        seen: list[tuple[Any, Any]] = []

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            alone = not kwargs and len(args) == 1 and _of_positions(args[0], output)
            seen.append((args[0][:, -1:].detach(), output[:, -1:].detach()) if alone else (None, None))

        handle = self._module.register_forward_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
        self._by_itself += [given is not None and _by_itself(self._module, given, output) for given, output in seen]

    @contextlib.contextmanager
    def only_at(self, rows: Tensor, columns: Tensor, width: int) -> Iterator[None]:
        """Within the block the module computes some positions alone, and gives zeros elsewhere; after `watched`.

        Args:
            rows, columns: (N,) the positions that are read, of those that run.
            width: How many columns run.
        """
        module = self._module
        if module is None or self._by_itself != [True]:
            yield
            return
        own, previous = module.forward, module.__dict__.get("forward")
        places = torch.unique(rows * width + columns)  # one that is read twice has one gradient

        def forward(hidden: Tensor) -> Tensor:
            at = places.to(hidden.device)
            flat = hidden.flatten(0, -2)
            read: Tensor = own(flat[at][None])[0]
            return read.new_zeros(len(flat), read.shape[-1]).index_put((at,), read).view(*hidden.shape[:-1], -1)

        module.forward = forward
        try:
            yield
        finally:
            if previous is None:
                del module.forward
            else:  # accelerate had put its own forward there
                module.forward = previous


def _of_positions(given: Any, output: Any) -> bool:
    """Whether a module was handed one state for each position, (R, T, d), and gave as many."""
    return isinstance(given, Tensor) and isinstance(output, Tensor) and given.ndim == 3 and output.shape == given.shape


@torch.no_grad()
def _by_itself(module: nn.Module, given: Tensor, output: Tensor) -> bool:
    """Whether a column (R, 1, d) alone gives what it gave among the others."""
    alone = module.forward(given)
    if not isinstance(alone, Tensor):
        return False
    error, size = (alone - output).float().norm(), output.float().norm()
    return bool(error <= 0.05 * size)  # half precision rounds; what looks at other positions differs by more
