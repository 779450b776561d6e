"""Training passes over whole rows of which the lower blocks are run once: no weight in them is trained.

The first pass over a row goes through the whole model and keeps what enters the lowest block that is trained; later
ones begin there (`models.bridging`), in whatever batch the row stands by then. Logits are computed where a label is.
Equal to whole passes up to round-off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from lm_eval_edit.editors._shared.head import reading
from lm_eval_edit.editors._shared.rows import AlignedRows
from lm_eval_edit.models import naming
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.models.bridging import bridged

KEPT_BYTES = 2**30
"""What may be kept of all rows together; the passes over rows beyond it go through the whole model."""


class Above:
    """A decoder whose blocks below `start` give the same in every pass.

    Args:
        model: A causal language model in evaluation mode.
        architecture: Its parts.
        lengths: How many tokens each row has, by the row's number.
        start: The lowest block with a weight that is trained.
        limit: Bytes that may be kept.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        architecture: Architecture,
        lengths: Sequence[int],
        start: int,
        limit: int = KEPT_BYTES,
    ):
        self.model, self.lengths = model, lengths
        self._below = [model.get_submodule(path) for path in architecture.blocks[:start]]
        self._returns_tuple: list[bool] = []
        self._entering: dict[int, Tensor] = {}
        self._room = limit

    def label_logits(self, batch: AlignedRows, rows: Sequence[int], weights: Mapping[str, Tensor]) -> Tensor:
        """Logits where `batch` has a label.

        Args:
            batch: Rows padded on the right.
            rows: The number of each of them.
            weights: Parameters in the place of the model's own.

        Returns:
            (N, V), in the model's dtype, one row for each label.
        """
        inputs = {"input_ids": batch.input_ids, naming.MASK: batch.attention_mask} | naming.without_cache(self.model)
        known = bool(self._below) and all(row in self._entering for row in rows)
        how = bridged(self._below, self._stacked(batch, rows), self._returns_tuple) if known else self._keeping(rows)
        with how, reading(self.model, batch.label_rows, batch.label_columns) as readings:
            return readings.of(functional_call(self.model, dict(weights), kwargs=inputs).logits)

    def _stacked(self, batch: AlignedRows, rows: Sequence[int]) -> Tensor:
        """(R, T, d) what enters block `start`; zeros where a row has ended, which nothing before it sees."""
        first = self._entering[rows[0]]
        entering = first.new_zeros(len(rows), batch.input_ids.shape[1], first.shape[-1])
        for place, row in enumerate(rows):
            entering[place, : self.lengths[row]] = self._entering[row]
        return entering

    @contextlib.contextmanager
    def _keeping(self, rows: Sequence[int]) -> Iterator[None]:
        """Within the block a pass over `rows` leaves behind what enters block `start`, as far as there is room."""
        seen: list[bool] = []

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            seen.append(isinstance(output, tuple))
            if module is not self._below[-1]:
                return
            hidden: Tensor = (output[0] if isinstance(output, tuple) else output).detach()
            for place, row in enumerate(rows):
                kept = hidden[place, : self.lengths[row]]
                size = kept.numel() * kept.element_size()
                if row not in self._entering and size <= self._room:
                    self._entering[row] = kept.clone()
                    self._room -= size

        with contextlib.ExitStack() as stack:
            for block in self._below:
                stack.callback(block.register_forward_hook(hook).remove)
            yield
        self._returns_tuple = seen
