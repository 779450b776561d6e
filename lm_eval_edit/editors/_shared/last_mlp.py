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
from lm_eval_edit.models.bridging import forwards


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
        # What a pass has given it in the last column, and what it gave there; None for something else than (R, T, d).
        self._seen: list[tuple[Tensor, Tensor] | None] = []
        self._by_itself: bool | None = None
        # (rows, columns, first, width, places) of the passes so far: finding what is read twice waits for a device.
        self._places: list[tuple[Tensor, Tensor, int, int, Tensor]] = []

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block a pass shows what the module takes and gives."""
        if self._module is None:
            yield
            return

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = args[0] if len(args) == 1 and not kwargs else None
            if (
                isinstance(given, Tensor)
                and isinstance(output, Tensor)
                and output.shape == given.shape
                and output.ndim == 3
            ):
                # Copies: a view would keep what stands in all columns for as long as this is kept.
                self._seen.append((given[:, -1:].detach().clone(), output[:, -1:].detach().clone()))
            else:
                self._seen.append(None)

        handle = self._module.register_forward_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _maps_each_by_itself(self, module: nn.Module) -> bool:
        """Whether the module takes one tensor and maps each position by itself: tried once, on what it was given.

        Not within the pass itself, whose other observers would see this as well.
        """
        if self._by_itself is None:
            seen = self._seen[0] if len(self._seen) == 1 else None
            self._by_itself = seen is not None and _each_by_itself(module, *seen)
            self._seen.clear()
        return self._by_itself

    def _read_at(self, rows: Tensor, columns: Tensor, first: int, width: int) -> Tensor:
        """(M,) the positions among all that run, each once: one that is read twice has one gradient."""
        for known in self._places:
            if known[0] is rows and known[1] is columns and known[2:4] == (first, width):
                return known[4]
        places: Tensor = torch.unique(rows * width + columns - first)
        self._places.append((rows, columns, first, width, places))
        return places

    def only_at(self, rows: Tensor, columns: Tensor, first: int, width: int) -> contextlib.AbstractContextManager[None]:
        """Within the block the module computes some positions alone, and gives zeros elsewhere; after `watched`.

        Args:
            rows, columns: (N,) the positions that are read; the same tensors, with the same values, for every pass that
                reads the same.
            first: The first column that runs.
            width: How many columns run.
        """
        if self._module is None or not self._maps_each_by_itself(self._module):
            return contextlib.nullcontext()
        return self.only(self._read_at(rows, columns, first, width))

    @contextlib.contextmanager
    def only(self, places: Tensor) -> Iterator[None]:
        """As `only_at`, at `places` (M,) among all positions that run, row by row, each once."""
        module = self._module
        if module is None or not self._maps_each_by_itself(module):
            yield
            return
        own = module.forward

        def forward(hidden: Tensor) -> Tensor:
            at = places.to(hidden.device)
            flat = hidden.flatten(0, -2)
            read: Tensor = own(flat[at][None])[0]
            return read.new_zeros(len(flat), read.shape[-1]).index_put((at,), read).view(*hidden.shape[:-1], -1)

        with forwards({module: forward}):
            yield


@torch.no_grad()
def _each_by_itself(module: nn.Module, given: Tensor, output: Tensor) -> bool:
    """Whether a column alone (R, 1, d) gives what it gave among the others."""
    alone = module.forward(given)
    if not isinstance(alone, Tensor):
        return False
    error, size = (alone - output).float().norm(), output.float().norm()
    return bool(error <= 0.05 * size)  # half precision rounds; what looks at other positions differs by more
