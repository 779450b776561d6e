"""Vary what happens at the last token of one text, block by block, without running the rest of the text again.

In a decoder nothing before the last token depends on it. One pass keeps the keys and values of all earlier tokens and
what every block is given at the last one; after that, a variation inside block l costs one token through the blocks
from l on, for as many variants at a time as are wanted. Equal to full passes up to round-off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from lm_eval_edit.editors._shared.forward import by_row, keys_and_values, position_argument
from lm_eval_edit.errors import UserError
from lm_eval_edit.models import naming
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.models.bridging import bridged, hidden_of
from lm_eval_edit.models.devices import input_device

LAYERS_AT_ONCE = 4  # more would send too many variants through blocks that cannot change them
CACHED_TOKENS = 4096  # rows x tokens whose keys and values are held at once


class LastTokenForward:
    """A decoder at the last token of one text.

    Args:
        model: A causal language model in evaluation mode.
        architecture: Its parts.
        ids: The text's tokens.
        sites: For each layer, a linear map whose vector at the last token is wanted.
        outputs: True for the vector that comes out of the site, False for the one that goes in.

    Attributes:
        vectors: For each layer, (width,) the site's vector at the last token.
        logits: (V,) the next token's logits.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: PreTrainedModel,
        architecture: Architecture,
        ids: Sequence[int],
        sites: Sequence[str],
        *,
        outputs: bool,
    ):
        limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if limit is not None and len(ids) > limit:
            raise UserError(f"an edit prompt has {len(ids)} tokens; this model's context holds {limit}")
        if naming.is_hybrid(model):
            raise UserError(
                f"{type(model).__name__} keeps a recurrent state beside keys and values, which cannot be handed on "
                f"from the tokens before the last: this method cannot edit it, rome, memit, ft and others can"
            )
        self.model, self._outputs = model, outputs
        self._blocks = [model.get_submodule(path) for path in architecture.blocks]
        self._sites = [model.get_submodule(path) for path in sites]
        self._ids = torch.tensor([list(ids)], device=input_device(model))
        self._entering: list[Tensor] = []  # per layer (1, 1, d)
        self._returns_tuple: list[bool] = []
        self.vectors: list[Tensor] = []

        def on_block(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            entering = args[0] if args else kwargs["hidden_states"]
            self._entering.append(entering[:, -1:].clone())
            self._returns_tuple.append(isinstance(output, tuple))

        def on_site(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.vectors.append(by_row(hidden_of(output) if outputs else args[0], 1)[0, -1].clone())

        cache = naming.cache_with()
        cached = naming.with_cache(model, cache)
        with contextlib.ExitStack() as stack:
            for block in self._blocks:
                stack.callback(block.register_forward_hook(on_block, with_kwargs=True).remove)
            for site in self._sites:
                stack.callback(site.register_forward_hook(on_site).remove)
            self.logits = model(input_ids=self._ids, **cached).logits[0, -1]
        kept = keys_and_values(model, cache, len(self._blocks), len(ids))
        self._prefix = [(keys[:, :, :-1], values[:, :, :-1]) for keys, values in kept]

    def layers_at_once(self, variants: int) -> int:
        """How many layers `varied` should be given together.

        A few variants of one layer keep a processor waiting for the weights; with several layers' variants the weights
        are read once for all. Every row holds the whole text's keys and values, so long texts want fewer.
        """
        return max(1, min(LAYERS_AT_ONCE, CACHED_TOKENS // (variants * self._ids.shape[1])))

    def varied(self, layers: Sequence[int], vectors: Tensor) -> Tensor:
        """The next token's logits with other vectors at one layer's site, for several layers.

        Args:
            layers: Layers, ascending.
            vectors: (len(layers), n, width) what stands in place of each site's vector, for n variants.

        Returns:
            (len(layers), n, V) logits, differentiable in `vectors`.
        """
        n, length = vectors.shape[1], self._ids.shape[1]
        rows = len(layers) * n
        prefix = [(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in self._prefix]
        cache = naming.cache_with(prefix if length > 1 else ())
        # The lowest block that runs is given its own input: the bridge below it hands that on. The variants of a higher
        # layer go through the blocks below it unchanged.
        entering = self._entering[layers[0]].expand(rows, -1, -1)
        with contextlib.ExitStack() as stack:
            stack.enter_context(bridged(self._blocks[: layers[0]], entering, self._returns_tuple))
            for index, layer in enumerate(layers):
                stack.callback(self._replacing(self._sites[layer], index * n, vectors[index]).remove)
            out = self.model(
                input_ids=self._ids[:, -1:].expand(rows, 1),
                attention_mask=self._ids.new_ones(rows, length),
                **naming.with_cache(self.model, cache),
                **position_argument(self.model, self._ids.new_full((rows, 1), length - 1)),
            )
        logits: Tensor = out.logits[:, -1].view(len(layers), n, -1)
        return logits

    def _replacing(self, site: nn.Module, first: int, vectors: Tensor) -> RemovableHandle:
        """Hook that puts `vectors` (n, width) in the place of the rows from `first` on."""

        def replaced(tensor: Tensor) -> Tensor:
            flat = tensor.reshape(-1, tensor.shape[-1])  # some MLPs see all rows as one
            parts = [flat[:first], vectors.to(tensor), flat[first + len(vectors) :]]
            return torch.cat(parts).view(tensor.shape)

        if self._outputs:
            return site.register_forward_hook(lambda module, args, output: replaced(output))
        return site.register_forward_pre_hook(lambda module, args: (replaced(args[0]),))
