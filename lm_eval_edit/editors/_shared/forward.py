"""Run only the part of a decoder that an edit can change: the blocks above the site, the columns from the subject on.

The model's own forward does the work, so masks, rotary positions, soft-capping and the like stay the model's
business: blocks below the site are bridged (they hand on the cached hidden states), and the columns left of the subject
enter as a key-value cache. Equal to the full forward up to round-off. What a recurrent state holds of those columns
cannot be cut out of it: such a model is run from its first column on, without a cache.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from lm_eval_edit.editors._shared import left
from lm_eval_edit.editors._shared.head import reading
from lm_eval_edit.editors._shared.last_mlp import LastMlp
from lm_eval_edit.editors._shared.rows import AlignedRows
from lm_eval_edit.editors._shared.sites import site_of
from lm_eval_edit.errors import UserError
from lm_eval_edit.models import naming
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.models.bridging import bridged, hidden_of


@contextlib.contextmanager
def without_parameter_gradients(model: nn.Module) -> Iterator[None]:
    """Inside the block no parameter asks for a gradient: a backward pass keeps only what the optimised vector needs."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def _like(output: Any, hidden: Tensor) -> Any:
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def by_row(states: Tensor, rows: int) -> Tensor:
    """A module's input or output as (R, T, width), also where a model hands its MLPs (R * T, width), as OPT does."""
    return states.reshape(rows, -1, states.shape[-1])


def position_argument(model: PreTrainedModel, position_ids: Tensor) -> dict[str, Tensor]:
    """The argument of the model's forward that gives each row its own positions, wherever padding put its tokens.

    Empty for a model that takes none and needs none, because its positions are relative (ALiBi).

    Raises:
        UserError: the model embeds absolute positions and does not take them as an argument.
    """
    if naming.accepts(model, naming.POSITIONS):
        return {naming.POSITIONS: position_ids}
    if sum(isinstance(module, nn.Embedding) for module in model.modules()) > 1:  # more than its tokens
        raise UserError(
            f"{type(model).__name__} embeds absolute positions and does not accept position_ids, so prompts of "
            f"different lengths cannot be edited together; editors cannot edit it"
        )
    return {}


def keys_and_values(
    model: PreTrainedModel, cache: DynamicCache, n_layers: int, tokens: int
) -> list[tuple[Tensor, Tensor]]:
    """(keys, values) of each layer, if its blocks keep nothing but those of all tokens: nothing else can be cut.

    Raises:
        UserError: a recurrent state, or keys and values shared between layers.
    """
    plain = [layer for layer in naming.keys_and_values(cache) if layer is not None]
    if len(plain) != n_layers or any(keys.shape[-2] != tokens for keys, _ in plain):
        raise UserError(
            f"{type(model).__name__} does not keep keys and values of its own, for every token, in each of its "
            f"{n_layers} layers (it has a recurrent state, or layers that share them); editors cannot edit it"
        )
    return plain


@dataclass(frozen=True)
class Capture:
    """What one forward pass showed at the subject's last token, for every row.

    Attributes:
        keys: {layer: (R, m)} what the edited matrix reads: the input of the MLP down-projection (`sites`).
        mlp_outputs: {layer: (R, d)} output of the MLP down-projection, bias included; of a mixture's experts the
            output of the whole mixture.
        block_outputs: {layer: (R, d)} output of the whole block.
    """

    keys: dict[int, Tensor]
    mlp_outputs: dict[int, Tensor]
    block_outputs: dict[int, Tensor]


class PartialForward:
    """A decoder restricted to `rows` and to what lies above block `start`.

    Args:
        model: A causal language model in evaluation mode.
        architecture: Its parts.
        rows: Aligned rows; `rows.column` is column 0 of what `logits` computes, or of a model with a recurrent state
            column `column`.
        start: The first block that is run; the output of block `start - 1` is taken from the first, full pass.
        capture: Layers whose keys and outputs at the subject's last token are kept, in `self.capture`.

    Attributes:
        column: Where the rows' subjects end among the columns that `logits` computes.
        entering: (R, columns, d) what block `start` is given there; None for the first.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: PreTrainedModel,
        architecture: Architecture,
        rows: AlignedRows,
        start: int,
        capture: tuple[int, ...] = (),
    ):
        if model.training:
            raise ValueError("editors want a model in evaluation mode: call model.eval() first")
        self.model, self.rows, self.start = model, rows, start
        self._blocks = [model.get_submodule(path) for path in architecture.blocks]
        self._block_is_tuple: list[bool] = []
        column = rows.column
        hybrid = naming.is_hybrid(model)
        self._from = 0 if hybrid else column  # the first column that is computed again
        self.column = column - self._from
        self._last_mlp = LastMlp(model, architecture)
        # The edited block's own projection is looked at in whole rows.
        self._last_is_whole = start >= len(self._blocks) - 1
        cut, prefix = self._beginnings(architecture, capture)
        padding = rows.attention_mask[:, cut:, None] == 0
        keys: dict[int, Tensor] = {}
        mlp_outputs: dict[int, Tensor] = {}
        block_outputs: dict[int, Tensor] = {}
        hidden: dict[int, Tensor] = {}

        def at_column(states: Tensor) -> Tensor:
            return by_row(states, len(rows))[:, column - cut].detach().clone()

        def on_key(layer: int) -> Callable[[Tensor], None]:
            return lambda key: keys.update({layer: key})

        def on_output(layer: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                mlp_outputs[layer] = at_column(hidden_of(output))

            return hook

        def on_block(layer: int) -> Callable[..., Any]:
            def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
                self._block_is_tuple.append(isinstance(output, tuple))
                if layer == start - 1:
                    hidden[layer] = hidden_of(output)[:, self._from - cut :].detach().clone()
                if layer in capture:
                    block_outputs[layer] = hidden_of(output)[:, column - cut].detach().clone()
                # Padding attends to nothing, which some attention implementations answer with NaN; zeros instead,
                # because NaN would reach the other columns even with an attention of 0.
                return _like(output, hidden_of(output).masked_fill(padding.to(hidden_of(output).device), 0))

            return hook

        cache = naming.cache_with(prefix)
        caching = naming.without_cache(model) if hybrid else naming.with_cache(model, cache)
        inputs = caching | position_argument(model, rows.position_ids[:, cut:])
        if naming.accepts(model, naming.LOGITS_KEPT):
            inputs[naming.LOGITS_KEPT] = 1
        nowhere = torch.zeros(0, dtype=torch.long)
        with contextlib.ExitStack() as stack:
            if not self._last_is_whole:
                stack.enter_context(self._last_mlp.watched())
            for layer in capture:
                site = site_of(model, architecture, layer)
                stack.callback(site.watch_keys(at_column, on_key(layer)).remove)
                stack.callback(model.get_submodule(site.output).register_forward_hook(on_output(layer)).remove)
            for layer, block in enumerate(self._blocks):
                stack.callback(block.register_forward_hook(on_block(layer)).remove)
            stack.enter_context(reading(model, nowhere, nowhere))
            model(input_ids=rows.input_ids[:, cut:], attention_mask=rows.attention_mask, **inputs)
        kept = [] if hybrid else keys_and_values(model, cache, len(self._blocks), rows.input_ids.shape[1])
        self._prefix = [(keys[:, :, :column], values[:, :, :column]) for keys, values in kept]
        self.entering = hidden.get(start - 1)
        self._hybrid = hybrid
        self.capture = Capture(keys, mlp_outputs, block_outputs)

    def _beginnings(self, architecture: Architecture, capture: tuple[int, ...]) -> tuple[int, left.KeysValues]:
        """The column from which the first pass runs, and the keys and values left of it: what rows share is run once.

        A fact alone shares nothing, but what stands left of the bare prompt, the first row, may be known of another.
        """
        rows, model = self.rows, self.model
        if not left.keeps_all(model, len(self._blocks)):
            return 0, []
        cut = left.shared_cut(rows)
        alone = not cut and bool(capture) and rows.input_ids.device.type in left.KEPT_ON
        if alone:
            cut = rows.input_ids.shape[1] - int(rows.attention_mask[0].sum())
        if not cut:
            return 0, []
        shared = left.Left.of(rows, cut)
        if alone:
            states = left.run_or_known(model, shared, site_of(model, architecture, capture[0]).weight)
        else:
            states = left.run(model, shared)
        return cut, [(shared.spread(keys), shared.spread(values)) for keys, values in states]

    def selected(self, index: Tensor) -> PartialForward:
        """The same for the rows `index` (n,) alone; nothing is computed again. `capture` stays that of all rows."""
        chosen = copy.copy(self)
        chosen.rows = self.rows.selected(index)
        chosen._prefix = [(k[index.to(k.device)], v[index.to(v.device)]) for k, v in self._prefix]
        chosen.entering = None if self.entering is None else self.entering[index.to(self.entering.device)]
        return chosen

    def up_to(self, column: int) -> PartialForward:
        """The same without the columns right of `column`, which no column left of them sees."""
        width = column + 1
        if width >= self.rows.input_ids.shape[1]:
            return self
        chosen = copy.copy(self)
        chosen.rows = self.rows.up_to(column)
        chosen.entering = None if self.entering is None else self.entering[:, : width - self._from]
        return chosen

    def logits(self, at_rows: Tensor, at_columns: Tensor, entering: Tensor | None = None) -> Tensor:
        """Logits where they are read.

        Args:
            at_rows, at_columns: (N,) positions; columns are counted from the rows' beginning, and stand at or right of
                the subject's last token.
            entering: As `self.entering`, what block `start` is given instead of the hidden states of the first pass.

        Returns:
            (N, V), in the model's dtype.
        """
        first = self._from
        if self._hybrid:
            caching = naming.without_cache(self.model)
        else:
            caching = naming.with_cache(self.model, naming.cache_with(self._prefix if first else ()))
        given = self.entering if entering is None else entering
        ids, columns = self.rows.input_ids[:, first:], at_columns - first
        where = at_rows, at_columns, first, ids.shape[1]
        with (
            contextlib.nullcontext() if self._last_is_whole else self._last_mlp.only_at(*where),
            bridged(self._blocks[: self.start], given, self._block_is_tuple),
            reading(self.model, at_rows, columns) as readings,
        ):
            out = self.model(
                input_ids=ids,
                attention_mask=self.rows.attention_mask,
                **caching,
                **position_argument(self.model, self.rows.position_ids[:, first:]),
            )
        return readings.of(out.logits)


@contextlib.contextmanager
def added_to_output(module: nn.Module, column: int, vectors: Tensor) -> Iterator[None]:
    """Within the block, `vectors` (R, d) are added to `module`'s output at one column of every row."""

    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        hidden = by_row(hidden_of(output), len(vectors))
        shifted = hidden[:, column] + vectors.to(device=hidden.device, dtype=hidden.dtype)
        changed = torch.cat([hidden[:, :column], shifted[:, None], hidden[:, column + 1 :]], dim=1)
        return _like(output, changed.view(hidden_of(output).shape))

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
