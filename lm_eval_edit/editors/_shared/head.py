"""The language-model head where somebody reads it, and nowhere else.

The head is the largest matrix of most models, and an edit reads a few of the positions that run. What a model does with
the head's output (soft caps, scales) is done to each number alone, so that it stays the model's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


class Readings:
    """Positions of a pass whose logits are wanted.

    Args:
        rows, columns: (N,) the positions, counted in what the pass computes.
    """

    def __init__(self, rows: Tensor, columns: Tensor):
        self.rows, self.columns = rows, columns
        self._taken = False

    def _take(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden: Tensor = args[0]
        self._taken = True
        return hidden[self.rows.to(hidden.device), self.columns.to(hidden.device)][None], *args[1:]

    def of(self, logits: Tensor) -> Tensor:
        """(N, V) of what the model has put out: of these positions alone, or of all of them."""
        if self._taken:
            return logits[0]
        return logits[self.rows.to(logits.device), self.columns.to(logits.device)]


@contextmanager
def reading(model: PreTrainedModel, rows: Tensor, columns: Tensor) -> Iterator[Readings]:
    """Within the block, one pass of `model` runs its head at N positions alone, if it has a module for its head."""
    found = Readings(rows, columns)
    # Models of others' code may not tell, or name the module that takes the tokens in as well.
    head, first = (getattr(model, f"get_{name}_embeddings", lambda: None)() for name in ("output", "input"))
    handle = None if head is None or head is first else head.register_forward_pre_hook(found._take)
    try:
        yield found
    finally:
        if handle is not None:
            handle.remove()
