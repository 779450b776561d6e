"""The rolling likelihood of a text by HFLM: of the text's own tokens, whatever else is asked with it.

Two things stand between HFLM's figure and log P(text):

- A tokenizer that puts a beginning-of-sequence token before a text (LLaMA's) gets it before the text *and* as the token
  that everything is conditioned on, so that P(BOS | BOS) counts as a word of every text. A `Whole` text has neither
  that one nor one behind it.
- Windows of one batch that hold the same tokens, split in two ways, are answered by one forward, and the shorter of
  them is then read at the wrong places (lm-eval 0.4.13, `Collator.get_cache`): in a text that repeats itself the last
  window can be. Without the cache of logits, which no window has any use for, every window is asked for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lm_eval.api.instance import Instance


class Whole(str):
    """A text of which every token counts, and none beside them."""


def apart(lm: Any, rolling: Callable[..., list[float]]) -> Callable[..., list[float]]:
    """An HFLM's `loglikelihood_rolling`, with every window asked for itself."""

    def loglikelihood_rolling(requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        kept, lm.logits_cache = lm.logits_cache, False
        try:
            return rolling(requests, disable_tqdm=disable_tqdm)
        finally:
            lm.logits_cache = kept

    return loglikelihood_rolling


def own_tokens(encode: Callable[..., list[int]]) -> Callable[..., list[int]]:
    """An HFLM's `tok_encode`, of a `Whole` text without special tokens around it."""

    def tok_encode(string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        alone = isinstance(string, Whole) and add_special_tokens is None
        return encode(string, add_special_tokens=False if alone else add_special_tokens, **kwargs)

    return tok_encode


def ask_whole(request: Instance) -> Instance:
    """The request about its text as a `Whole` one: the only argument before lm-eval 0.5, the last from then on."""
    *before, text = request.arguments
    request.arguments = (*before, Whole(text))
    return request
