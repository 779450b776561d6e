"""What the harness makes anew for every evaluation, made once: a task's requests, a text's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import Task


def remember_requests(task: Task) -> None:
    """Build a task's requests once; afterwards they are handed out again without their answers."""
    build: Callable[..., None] = task.build_all_requests
    built: dict[str, list] = {}

    def build_all_requests(**how: Any) -> None:
        key = repr(sorted(how.items()))
        if key not in built:
            build(**how)
            built[key] = task._instances
        for instance in built[key]:
            instance.resps, instance.filtered_resps = [], {}
        task._instances = built[key]

    task.build_all_requests = build_all_requests


def remember_tokens(lm: TemplateLM) -> None:
    """Tokenise each text, and each batch of texts, once.

    Args:
        lm: One whose `tok_encode` takes a text or, as vLLM's does, a list of them; `tok_batch_encode` where it has one.
    """
    encode, encode_batch = lm.tok_encode, getattr(lm, "tok_batch_encode", None)
    texts: dict[Any, list[int]] = {}
    batches: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}

    def tok_encode(string: str | Sequence[str], *args: Any, **how: Any) -> Any:
        options = (args, tuple(sorted(how.items())))
        if not isinstance(string, str):
            new = list(dict.fromkeys(text for text in string if (text, *options) not in texts))
            if new:
                texts.update(zip([(text, *options) for text in new], encode(new, *args, **how), strict=True))
            return [list(texts[(text, *options)]) for text in string]
        key = (string, *options)
        if key not in texts:
            texts[key] = encode(string, *args, **how)
        return list(texts[key])

    def tok_batch_encode(strings: Sequence[str], *args: Any, **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
        key = (tuple(strings), args, tuple(sorted(how.items())))
        if key not in batches:
            assert encode_batch is not None, "a model without batches of tokens is not asked for them"
            batches[key] = encode_batch(list(strings), *args, **how)
        ids, mask = batches[key]
        return ids.clone(), mask.clone()

    vars(lm)["tok_encode"] = tok_encode  # of this object alone
    if encode_batch is not None:
        vars(lm)["tok_batch_encode"] = tok_batch_encode
