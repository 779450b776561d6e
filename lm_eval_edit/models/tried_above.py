"""Whether passes of a model may begin above its lowest blocks: tried, and every bit compared with whole passes.

Nothing is read off a model's code. One whose blocks hand on more than hidden states, or keep more than a cache of keys
and values (a recurrent state, keys that layers share), computes something else then, or fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.models.lower_blocks import LowerBlocks

_ROWS, _TOKENS, _MORE = 2, 6, 3  # of the prompts that are tried, and the tokens that are generated behind them


@torch.no_grad()
def why_not(model: PreTrainedModel, architecture: Architecture, levels: Iterable[int]) -> tuple[str, str]:
    """Why passes over prompts cannot begin above the lower blocks, and why those that begin a generation cannot.

    Both are tried at each level: prompts, others of the same form, the first ones twice more, and every bit compared
    with a whole pass.

    Args:
        model: In evaluation mode.
        architecture: Its parts.
        levels: As of `LowerBlocks`.

    Returns:
        Two sentences; empty where nothing is in the way.
    """
    embeddings = model.get_input_embeddings().weight
    assert isinstance(embeddings, Tensor), "a language model embeds its tokens"
    device = embeddings.device
    drawn = torch.randperm(len(embeddings), generator=torch.Generator().manual_seed(0))
    padding = model.config.get_text_config(decoder=True).pad_token_id  # which transformers warns of
    drawn = drawn[drawn != (-1 if padding is None else padding)].to(device)
    first, other = drawn[: 2 * _ROWS * _TOKENS].view(2, _ROWS, _TOKENS)
    mask = torch.ones_like(first)
    mask[0, 0] = 0  # padding, as in a batch of prompts of different lengths

    def read(ids: Tensor) -> list[Tensor]:
        return [model(ids).logits]

    def generated(ids: Tensor) -> list[Tensor]:
        how = {
            "min_new_tokens": _MORE, "max_new_tokens": _MORE, "do_sample": False, "use_cache": True, "pad_token_id": 0,
        }  # fmt: skip
        # torch knows attributes of modules as tensors or modules.
        found: Any = model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True, **how
        )
        return [found.sequences, *found.logits]

    levels = list(levels)
    reading = next(filter(None, (_differs(model, architecture, level, read, first, other) for level in levels)), "")
    if reading:
        return reading, reading
    tries = (_differs(model, architecture, level, generated, first, other) for level in levels)
    return "", next(filter(None, tries), "")


def _differs(
    model: PreTrainedModel,
    architecture: Architecture,
    level: int,
    run: Callable[[Tensor], list[Tensor]],
    first: Tensor,
    other: Tensor,
) -> str:
    """Whether a way to run a model gives other bits when it begins at a block, as a sentence."""
    lower = LowerBlocks(model, architecture, [level], float("inf"))
    try:
        whole = run(first)
        with lower.used(level):
            shared = [run(first), run(other), run(first), run(first)]
    except Exception as error:  # a model's own code, given what it does not expect
        return f"begun at block {level} it raises {type(error).__name__}: {error}"
    counts = lower.counts
    if (counts.hits, counts.misses) != (2, 2):
        return f"its passes are given something that cannot be compared ({counts})"
    if all(_same_bits(whole, shared[number]) for number in (0, 2, 3)):
        return ""
    return (
        f"begun at block {level} it computes something else: a pass hands on, or keeps, more than hidden states and a "
        f"cache of keys and values"
    )


def _same_bits(one: list[Tensor], other: list[Tensor]) -> bool:
    def bits(tensor: Tensor) -> Tensor:
        return tensor.contiguous().view(torch.uint8)

    return len(one) == len(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))
        for a, b in zip(one, other, strict=True)
    )
