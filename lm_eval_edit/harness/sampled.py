"""Texts that are sampled, each from a generator of its own: `hf` and `edited_hf` give the same ones in every run.

The harness samples with the process's one generator, so a text depends on what was sampled before it and beside it.
A request of this kind is

    (prompt, {"do_sample": true, "seed": s, "top_k": k, "max_gen_toks": n, "until": [...], "ignore_eos": true})

with an optional `temperature`. Its tokens are drawn with a generator seeded by `seed` alone. The rows of a batch differ
in their last bits with what else is in it, so requests are batched by document: a batch is the same whatever the batch
size, the order of documents and the number of processes. `seed`, `top_k` and `ignore_eos` (go on behind the end of
text) are vLLM's words, whose model type takes such a request as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from tqdm.auto import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

SEED = "seed"
IGNORE_END = "ignore_eos"


def is_sampled(request: Instance) -> bool:
    """Whether a request to generate wants a generator of its own."""
    how = request.args[1]
    return isinstance(how, dict) and bool(how.get("do_sample")) and how.get(SEED) is not None


def answered(
    lm: Any, requests: Sequence[Instance], others: Callable[[list[Instance]], list[str]], hide: bool = False
) -> list[str]:
    """The texts of requests to generate, in their order.

    Args:
        lm: An HFLM.
        requests: Sampled ones, which are answered here, and others.
        others: Answers the others.
        hide: No progress bar.
    """
    plain = [request for request in requests if not is_sampled(request)]
    rest = iter(others(plain) if plain or not requests else [])
    groups: dict[Any, list[int]] = {}
    for index, request in enumerate(requests):
        if is_sampled(request):
            alone = request.task_name is None or request.doc_id is None
            groups.setdefault(index if alone else (request.task_name, request.doc_id), []).append(index)
    texts: dict[int, str] = {}
    for group in tqdm(groups.values(), desc="sampling texts", unit="document", disable=hide or not groups):
        # Where documents are divided among processes, the harness repeats requests to make their numbers equal.
        different = {repr(requests[index].args): requests[index] for index in group}
        found = dict(zip(different, _sample(lm, list(different.values())), strict=True))
        for index in group:
            texts[index] = found[repr(requests[index].args)]
            lm.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
    return [texts[index] if index in texts else next(rest) for index in range(len(requests))]


def _sample(lm: Any, requests: Sequence[Instance]) -> list[str]:
    """What the model says after the prompts of one batch."""
    ways = [request.args[1] for request in requests]
    most = max(int(way["max_gen_toks"]) for way in ways)
    ids, mask = lm.tok_batch_encode(
        [request.args[0] for request in requests], left_truncate_len=max(1, lm.max_length - most)
    )
    width = ids.shape[1]
    with torch.no_grad(), _nothing_but_what_is_asked(lm.model), _autocast(lm):
        rows = lm.model.generate(
            input_ids=ids.to(lm.device),
            attention_mask=mask.to(lm.device),
            max_new_tokens=most,
            do_sample=False,
            logits_processor=LogitsProcessorList([_Drawn(ways)]),
            pad_token_id=lm.tokenizer.pad_token_id,
            use_cache=True,
        ).cpu()
    return [
        _text(lm, row[:width][shown.bool()].tolist(), row[width : width + int(way["max_gen_toks"])].tolist(), way)
        for row, shown, way in zip(rows, mask, ways, strict=True)
    ]


def _text(lm: Any, prompt: list[int], new: list[int], way: dict[str, Any]) -> str:
    if not way.get(IGNORE_END) and lm.eot_token_id in new:
        new = new[: new.index(lm.eot_token_id)]
    # A new token may be decoded differently with nothing before it: SentencePiece drops a leading space.
    before, whole = (lm.tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, prompt + new))
    text = whole[len(before) :] if whole.startswith(before) else lm.tokenizer.decode(new, skip_special_tokens=True)
    for stop in way.get("until") or ():
        text = text.split(stop)[0] if stop else text
    return text


@contextlib.contextmanager
def _nothing_but_what_is_asked(model: Any) -> Iterator[None]:
    """Within this block the checkpoint's own wishes for generation (penalties, ends of text) do not hold."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _autocast(lm: Any) -> Any:
    dtype = getattr(lm, "mixed_precision_dtype", None)
    return torch.autocast(device_type=lm.device.type, dtype=dtype, enabled=dtype is not None)


class _Drawn(LogitsProcessor):
    """Draws a row's next token with the row's own generator, and leaves no other to choose."""

    def __init__(self, ways: Sequence[dict[str, Any]]):
        self._ways = ways
        self._generators = [torch.Generator().manual_seed(int(way[SEED])) for way in ways]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        left = torch.full_like(scores, -torch.inf)
        for row, (way, generator) in enumerate(zip(self._ways, self._generators, strict=True)):
            left[row, drawn(scores[row], way.get("top_k"), way.get("temperature", 1.0), generator)] = 0.0
        return left


def drawn(scores: torch.Tensor, top_k: int | None, temperature: float, generator: torch.Generator) -> int:
    """A token out of the k likeliest, each with its share of their probability.

    Args:
        scores: (v,) logits.
        top_k: None draws out of all.
        temperature: Divides the logits.
        generator: Of the CPU, so that every device draws alike; one number is taken from it.
    """
    best = torch.topk(scores, min(top_k or len(scores), len(scores)))  # sorted, likeliest first
    shares = torch.softmax(best.values.double().cpu() / temperature, dim=0).cumsum(dim=0)
    place = int(torch.searchsorted(shares, torch.rand(1, generator=generator, dtype=torch.float64)))
    return int(best.indices[min(place, len(shares) - 1)])
