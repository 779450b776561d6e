"""Training passes over whole rows of which the lower blocks are run once: no weight in them is trained.

The first pass over a row goes through the whole model and keeps what enters the lowest block that is trained; later
ones begin there (`models.bridging`), in whatever batch the row stands by then, and take from the first pass what that
block computes before anything trained (`steady`). Logits, and the last block's MLP (`last_mlp`), are computed where a
label is, once where several labels stand. Equal to whole passes up to round-off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from lm_eval_edit.editors._shared.head import reading
from lm_eval_edit.editors._shared.last_mlp import LastMlp
from lm_eval_edit.editors._shared.rows import AlignedRows
from lm_eval_edit.editors._shared.steady import Steady, stacked
from lm_eval_edit.models import naming
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.models.bridging import bridged

KEPT_BYTES = 2**30
"""What may be kept of all rows together; the passes over rows beyond it go through the whole model."""
KEPT_BATCHES = 256
"""Of which it is known where they are read: finding that waits for a device."""


@dataclass(frozen=True)
class _Read:
    """The positions of a batch that have a label, each once.

    Attributes:
        places: (M,) them among all positions of the batch, row by row.
        rows, columns: (M,) the same.
        of_label: (N,) which of them each label stands at; None where each stands at its own.
    """

    places: Tensor
    rows: Tensor
    columns: Tensor
    of_label: Tensor | None

    @classmethod
    def of(cls, batch: AlignedRows) -> _Read:
        """Of a batch's labels."""
        width = batch.input_ids.shape[1]
        places, of_label = torch.unique(batch.label_rows * width + batch.label_columns, return_inverse=True)
        if len(places) == len(of_label):
            return cls(places, batch.label_rows, batch.label_columns, None)
        return cls(places, places // width, places % width, of_label)


class Above:
    """A decoder whose blocks below `start` give the same in every pass.

    Args:
        model: A causal language model in evaluation mode.
        architecture: Its parts.
        lengths: How many tokens each row has, by the row's number.
        start: The lowest block with a weight that is trained.
        limit: Bytes that may be kept of what enters that block, and of what it computes before anything trained.
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
        self._steady = Steady(model, architecture.blocks[start], lengths, limit)
        self._names: dict[str, list[str]] = {}
        self._last_block = architecture.blocks[-1] + "."
        self._last_mlp = LastMlp(model, architecture)
        self._last_mlp_seen = False
        self._reads: dict[int, tuple[AlignedRows, _Read]] = {}

    def label_logits(self, batch: AlignedRows, rows: Sequence[int], weights: Mapping[str, Tensor]) -> Tensor:
        """Logits where `batch` has a label.

        Args:
            batch: Rows padded on the right.
            rows: The number of each of them.
            weights: Parameters in the place of the model's own.

        Returns:
            (N, V), in the model's dtype, one row for each label.
        """
        weights, read = self._everywhere(weights), self._read(batch)
        inputs = {"input_ids": batch.input_ids, naming.MASK: batch.attention_mask} | naming.without_cache(self.model)
        with contextlib.ExitStack() as stack:
            if bool(self._below) and all(row in self._entering for row in rows):
                entering = stacked([self._entering[row] for row in rows])
                stack.enter_context(bridged(self._below, entering, self._returns_tuple))
                if self._steady.knows(rows):
                    stack.enter_context(self._steady.handed_on(rows))
            else:
                stack.enter_context(self._keeping(rows))
                stack.enter_context(self._steady.kept(rows, weights.keys()))
            if not any(name.startswith(self._last_block) for name in weights):
                last = self._last_mlp
                stack.enter_context(last.only(read.places) if self._last_mlp_seen else last.watched())
            readings = stack.enter_context(reading(self.model, read.rows, read.columns))
            # Which parameters are tied would be looked for in every call; here it has been looked for once.
            output = functional_call(self.model, weights, kwargs=inputs, tie_weights=False)
        self._last_mlp_seen = True
        logits = readings.of(output.logits)
        return logits if read.of_label is None else logits[read.of_label.to(logits.device)]

    def _read(self, batch: AlignedRows) -> _Read:
        """Where `batch` is read; of one that comes again as it was found the first time."""
        if id(batch) not in self._reads:
            if len(self._reads) == KEPT_BATCHES:
                self._reads.pop(next(iter(self._reads)))
            self._reads[id(batch)] = batch, _Read.of(batch)  # kept with it, so that no other has its number
        return self._reads[id(batch)][1]

    def _everywhere(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights under every name that the model has for them."""
        if not weights.keys() <= self._names.keys():
            same: dict[int, list[str]] = {}
            for name, parameter in self.model.named_parameters(remove_duplicate=False):
                same.setdefault(id(parameter), []).append(name)
            self._names = {name: names for names in same.values() for name in names}
        return {name: weight for given, weight in weights.items() for name in self._names[given]}

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
