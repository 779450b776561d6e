"""What the harness makes anew for every evaluation, made once: a task's requests, a text's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM


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


def remember_tokens(lm: HFLM) -> None:
    """Tokenise each text, and each batch of texts, once."""
    encode, encode_batch = lm.tok_encode, lm.tok_batch_encode
    texts: dict[Any, list[int]] = {}
    batches: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}

    def tok_encode(string: str, *args: Any, **how: Any) -> list[int]:
        key = (string, args, tuple(sorted(how.items())))
        if key not in texts:
            texts[key] = encode(string, *args, **how)
        return list(texts[key])

    def tok_batch_encode(strings: Sequence[str], *args: Any, **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
        key = (tuple(strings), args, tuple(sorted(how.items())))
        if key not in batches:
            batches[key] = encode_batch(list(strings), *args, **how)
        ids, mask = batches[key]
        return ids.clone(), mask.clone()

    vars(lm).update(tok_encode=tok_encode, tok_batch_encode=tok_batch_encode)  # of this object alone
