"""Passes over the same prompts up to their subjects, again and again while layers are edited from the lowest up.

A method that closes its residual layer by layer asks for keys on the weights edited so far. What enters the lowest
block that has changed since the last pass is what it was, so a pass begins there; and what the rows' context templates
have in common is run once (`left`). Equal to whole passes up to round-off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from lm_eval_edit.editors._shared.forward import by_row, position_argument
from lm_eval_edit.editors._shared.left import KeysValues, Left, keeps_all, shared_cut
from lm_eval_edit.editors._shared.rows import Row, align
from lm_eval_edit.editors._shared.sites import site_of
from lm_eval_edit.models import naming
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.models.bridging import bridged
from lm_eval_edit.models.devices import input_device
from lm_eval_edit.models.stopping import Reached, until_reached


class _Stretch:
    """Rows through the blocks up to `end`, the first time from the lowest, later from where the last time said.

    Args:
        ids: (R, T).
        padding: (R, T) true where a row has not begun; None for rows padded on the right, which need no mask.

    Attributes:
        start: The block that the next pass begins at.
        keep: Whether to keep what enters there; else every pass begins at the lowest.
    """

    def __init__(
        self, model: PreTrainedModel, architecture: Architecture, ids: Tensor, end: int, padding: Tensor | None = None
    ):
        self.model, self.ids, self.end, self.keep = model, ids, end, True
        self.start = 0
        self._blocks = [model.get_submodule(path) for path in architecture.blocks[: end + 1]]
        self._padding = None if padding is None else padding[:, :, None]
        self._entering: Tensor | None = None
        self._returns_tuple: list[bool] = []

    def size(self, width: int) -> int:
        """Numbers that are kept."""
        return self.ids.numel() * width

    @torch.no_grad()
    def run(self, arguments: dict[str, Any], next_start: int) -> Tensor:
        """(R, T, d) what block `end` gives.

        Args:
            arguments: Of the model's forward, beside the tokens.
            next_start: The lowest block that may change before the next pass.
        """
        if next_start < self.start:  # a lower block than expected
            self.start, self._entering = 0, None
        last: list[Tensor] = []
        entering: list[Tensor] = []

        def on_block(layer: int) -> Callable[..., Any]:
            def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
                if len(self._returns_tuple) <= layer:
                    self._returns_tuple.append(isinstance(output, tuple))
                hidden: Tensor = output[0] if isinstance(output, tuple) else output
                if self._padding is not None:  # as in `forward`: padding attends to nothing
                    hidden = hidden.masked_fill(self._padding.to(hidden.device), 0)
                    output = (hidden, *output[1:]) if isinstance(output, tuple) else hidden
                if layer == next_start - 1:
                    entering.append(hidden)
                if layer == self.end:
                    last.append(hidden)
                    raise Reached
                return output

            return hook

        start = self.start
        with contextlib.ExitStack() as stack:
            stack.enter_context(bridged(self._blocks[:start], self._entering, self._returns_tuple))
            for layer in range(start, self.end + 1):
                stack.callback(self._blocks[layer].register_forward_hook(on_block(layer)).remove)
            with until_reached():
                self.model(input_ids=self.ids, **arguments)
        if self.keep and next_start > start:
            self.start, self._entering = next_start, entering[0]
        return last[0]


class SubjectPass:
    """Some rows up to their subjects' last tokens.

    Args:
        model: A causal language model in evaluation mode.
        architecture: Its parts.
        rows: The rows, which end at the subject for this.
        end: The block above which nothing is computed.
    """

    def __init__(self, model: PreTrainedModel, architecture: Architecture, rows: Sequence[Row], end: int):
        self.model, self.architecture = model, architecture
        rows = [Row(row.ids[: row.subject_last + 1], row.subject_last) for row in rows]
        aligned = align(rows, input_device(model))
        cut = shared_cut(aligned) if keeps_all(model, architecture.n_layers) else 0
        self._left = Left.of(aligned, cut) if cut else None
        self._beginnings: _Stretch | None = None
        self._prefix: KeysValues = []
        if self._left is None:
            ids = pad_sequence([torch.tensor(row.ids) for row in rows], batch_first=True).to(aligned.input_ids.device)
            self._rows = _Stretch(model, architecture, ids, end)
            self._last = torch.tensor([row.subject_last for row in rows], device=ids.device)  # once, not at each layer
            self._arguments: dict[str, Any] = {naming.MASK: torch.ones_like(ids), naming.USE_CACHE: False}
            return
        padding = aligned.attention_mask[:, cut:] == 0
        self._beginnings = _Stretch(model, architecture, self._left.beginnings, end)
        self._rows = _Stretch(model, architecture, aligned.input_ids[:, cut:], end, padding)
        self._last = torch.full((len(rows),), aligned.column - cut, device=aligned.input_ids.device)
        positions = position_argument(model, aligned.position_ids[:, cut:])
        self._arguments = {naming.MASK: aligned.attention_mask, **positions}

    def keep(self, wanted: bool) -> None:
        """Whether what a later pass begins with is kept; without, every pass begins at the lowest block."""
        self._rows.keep = wanted
        if self._beginnings is not None:
            self._beginnings.keep = wanted

    def kept_numbers(self, width: int) -> int:
        """How many numbers stay between two passes, for states of this width."""
        return self._rows.size(width) + (self._beginnings.size(width) if self._beginnings else 0)

    def run(self, layers: Sequence[int]) -> tuple[dict[int, Tensor], Tensor]:
        """Keys of some layers {layer: (R, f)} and the output (R, d) of block `end`, in float64, at the subjects.

        Until the next call only the lowest of these layers and blocks above it may change; without any, none.
        """
        lowest = min(layers, default=self._rows.start)
        arguments = self._arguments
        if self._beginnings is not None:
            arguments = arguments | naming.with_cache(self.model, naming.cache_with(self._prefixes(lowest)))
        keys: dict[int, Tensor] = {}

        def keep_key(layer: int) -> Callable[[Tensor], None]:
            return lambda key: keys.update({layer: key.double()})

        with contextlib.ExitStack() as hooks:
            for layer in layers:
                site = site_of(self.model, self.architecture, layer)
                hooks.callback(site.watch_keys(self._at_subjects, keep_key(layer)).remove)
            outputs = self._at_subjects(self._rows.run(arguments, lowest)).double()
        return keys, outputs

    def _prefixes(self, next_start: int) -> KeysValues:
        """(keys, values) left of the cut for every row, of the blocks up to `end`; what cannot have changed stays."""
        assert self._left is not None and self._beginnings is not None, "there is something left of the cut"
        start = 0 if next_start < self._beginnings.start else self._beginnings.start
        cache = naming.cache_with()
        inputs = self._left.inputs()
        del inputs["input_ids"]
        if not naming.accepts(self.model, naming.POSITIONS):
            del inputs[naming.POSITIONS]
        self._beginnings.run(inputs | naming.with_cache(self.model, cache), next_start)
        found = naming.keys_and_values(cache)
        fresh = [pair for pair in found[start:] if pair is not None]
        spread = [(self._left.spread(keys), self._left.spread(values)) for keys, values in fresh]
        self._prefix[start:] = spread
        return self._prefix

    def _at_subjects(self, states: Tensor) -> Tensor:
        states = by_row(states, len(self._last))
        return states[torch.arange(len(states), device=states.device), self._last.to(states.device)]
