"""Vary what happens at the last token of one text, block by block, without running the rest of the text again.

In a decoder nothing before the last token depends on it. One pass keeps the keys and values of all earlier tokens and
what every block is given at the last one; after that, a variation inside block l costs one token through the blocks
from l on, for as many variants at a time as are wanted. Equal to full passes up to round-off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from lm_eval_edit.architecture import Architecture
from lm_eval_edit.editors._forward import _hidden, bridged
from lm_eval_edit.errors import UserError


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
        self.model, self._outputs = model, outputs
        self._blocks = [model.get_submodule(path) for path in architecture.blocks]
        self._sites = [model.get_submodule(path) for path in sites]
        self._ids = torch.tensor([list(ids)], device=model.get_input_embeddings().weight.device)
        self._entering: list[Tensor] = []  # per layer (1, 1, d)
        self._returns_tuple: list[bool] = []
        self.vectors: list[Tensor] = []

        def on_block(_module, args, kwargs, output):
            entering = args[0] if args else kwargs["hidden_states"]
            self._entering.append(entering[:, -1:].clone())
            self._returns_tuple.append(isinstance(output, tuple))

        def on_site(_module, args, output):
            self.vectors.append((_hidden(output) if outputs else args[0])[0, -1].clone())

        cache = DynamicCache()
        with contextlib.ExitStack() as stack:
            for block in self._blocks:
                stack.callback(block.register_forward_hook(on_block, with_kwargs=True).remove)
            for site in self._sites:
                stack.callback(site.register_forward_hook(on_site).remove)
            self.logits = model(input_ids=self._ids, past_key_values=cache, use_cache=True).logits[0, -1]
        self._prefix = [(entry.keys[:, :, :-1], entry.values[:, :, :-1]) for entry in cache.layers]

    def varied(self, layer: int, vectors: Tensor) -> Tensor:
        """The next token's logits with other vectors at a layer's site.

        Args:
            vectors: (n, width) what stands in place of the site's vector, for n variants.

        Returns:
            (n, V) logits, differentiable in `vectors`.
        """
        n, length = len(vectors), self._ids.shape[1]
        prefix = [(k.expand(n, -1, -1, -1), v.expand(n, -1, -1, -1)) for k, v in self._prefix]
        cache = DynamicCache(ddp_cache_data=prefix) if length > 1 else DynamicCache()
        # The lowest block that runs is given its own input: the bridge below it hands that on.
        entering = self._entering[layer].expand(n, -1, -1)
        below = self._blocks[:layer]
        with self._replacing(self._sites[layer], vectors[:, None]), bridged(below, entering, self._returns_tuple):
            out = self.model(
                input_ids=self._ids[:, -1:].expand(n, 1),
                attention_mask=self._ids.new_ones(n, length),
                position_ids=self._ids.new_full((n, 1), length - 1),
                past_key_values=cache,
                use_cache=True,
            )
        return out.logits[:, -1]

    @contextlib.contextmanager
    def _replacing(self, site: nn.Module, vectors: Tensor):
        if self._outputs:
            handle = site.register_forward_hook(lambda module, args, output: vectors.to(output.dtype))
        else:
            handle = site.register_forward_pre_hook(lambda module, args: (vectors.to(args[0].dtype),))
        try:
            yield
        finally:
            handle.remove()
