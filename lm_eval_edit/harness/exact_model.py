"""HFLM as the one rule for tokens wants it: nothing behind a prompt, and requests for one token of an object."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from lm_eval_edit.facts.tokens import appended, ask_as, without_appended
from lm_eval_edit.harness import rolling, sampled
from lm_eval_edit.harness.exact_requests import OneToken, as_pairs

logger = logging.getLogger("lm_eval_edit")


class ExactHFLM(HFLM):
    """HFLM that tells editors and checks how it asks its tokenizer, and answers requests for one token.

    Every argument passes through.
    """

    answers_tokens = True  # see `exact_requests`
    _appended: tuple[int, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        ask_as(self.tokenizer, self.add_bos_token, self.prefix_token_id)
        self._appended = tuple(appended(self.tokenizer))
        if self._appended:
            logger.warning(
                "this tokenizer appends %r to every text; it is left off, as nothing may stand between a prompt and "
                "its answer (the harness's own `hf` keeps it)",
                self.tokenizer.decode(list(self._appended)),
            )

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As in HFLM, and for the one token that a request names if it does."""
        return super().loglikelihood(as_pairs(requests), disable_tqdm=disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """As in HFLM, and sampled from generators of their own where requests want that (`harness.sampled`)."""
        stock = super().generate_until
        return sampled.answered(self, requests, lambda some: stock(some, disable_tqdm=disable_tqdm), disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """As in HFLM, with every window asked for itself (`harness.rolling`)."""
        return rolling.apart(self, super().loglikelihood_rolling)(requests, disable_tqdm=disable_tqdm)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if isinstance(continuation, OneToken):
            return continuation.encoded(self, context)
        return super()._encode_pair(context, continuation)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **kwargs: Any
    ) -> list[int]:
        """As in HFLM, without a token that the tokenizer would put behind every text, or around a whole one."""
        ids = rolling.own_tokens(super().tok_encode)(string, add_special_tokens=add_special_tokens, **kwargs)
        if self._appended:
            ids = without_appended(self.tokenizer, string, ids)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_batch_encode(self, strings: list[str], padding_side: str = "left", **how: Any) -> tuple[Any, Any]:
        """As in HFLM, without a token that the tokenizer would put behind every text."""
        if not self._appended:
            return super().tok_batch_encode(strings, padding_side=padding_side, **how)
        rows = [self.tok_encode(string, left_truncate_len=how.get("left_truncate_len")) for string in strings]
        width, pad = max(map(len, rows)), self.tokenizer.pad_token_id
        gaps = [width - len(row) for row in rows]
        left = padding_side == "left"
        padded = [[pad] * gap + row if left else row + [pad] * gap for row, gap in zip(rows, gaps, strict=True)]
        masks = [sorted([0] * gap + [1] * len(row), reverse=not left) for row, gap in zip(rows, gaps, strict=True)]
        return torch.tensor(padded), torch.tensor(masks)
