"""Context templates: short texts sampled from the model that stand before an edit's prompt, so that it works anywhere.

Sampled as the published implementations do (top-5 sampling from five start words, EasyEdit's ROME and MEMIT), but with
a generator of our own: the same model and seed give the same templates, and no one else's random numbers are touched.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import SLOT
from lm_eval_edit.facts.tokens import encode
from lm_eval_edit.models.devices import input_device

START_WORDS = ("The", "Therefore", "Because", "I", "You")
TOP_K = 5


@dataclass(frozen=True)
class TemplatePlan:
    """Which context templates an editor wants.

    Attributes:
        length_params: (tokens, samples) pairs: so many samples, shared equally by the start words, of so many tokens in
            all, the start word and any beginning-of-sequence token included.
        nested: True for the MEMIT family's [["{}"], [the samples]]; False for a flat list that begins with "{}".
        braces: What a brace in a sampled text becomes.
    """

    length_params: tuple[tuple[int, int], ...]
    nested: bool = False
    braces: str = ""


def check_length_params(given: Sequence[Any]) -> None:
    """Check (tokens, samples) pairs, whose samples the start words share equally.

    Raises:
        ValueError: with what is wanted.
    """
    share = len(START_WORDS)
    for pair in given:
        numbers = isinstance(pair, Sequence) and all(type(n) is int and n > 0 for n in pair)
        if not numbers or len(pair) != 2 or pair[1] % share:
            raise ValueError(
                f"context_template_length_params={[list(p) if isinstance(p, tuple) else p for p in given]}: want pairs "
                f"(tokens, samples) of whole numbers, the samples a multiple of {share}, as many for each of the start "
                f"words {', '.join(START_WORDS)}; [[10, 5]] is MEMIT's. Others are given as context_templates"
            )


def check_templates(templates: Sequence[Any], plan: TemplatePlan, editor: str) -> None:
    """Check given context templates against what an editor wants.

    Raises:
        UserError: nested where flat ones are wanted or the reverse, the bare template is not the first, or a template
            does not hold `{}` exactly once.
    """
    flat, nested = '["{}", "The city. {}", ...]', '[["{}"], ["The city. {}", ...]]'
    want, other = (nested, flat) if plan.nested else (flat, nested)
    is_nested = any(not isinstance(entry, str) for entry in templates)
    if is_nested != plan.nested:
        raise UserError(
            f"context_templates: {editor} wants {'a list of lists' if plan.nested else 'a flat list'}, {want}; got "
            f"{'a flat list' if plan.nested else 'a list of lists'}, as {other} for the "
            f"{'ROME' if plan.nested else 'MEMIT'} family"
        )
    groups = templates if plan.nested else [templates]
    if any(isinstance(group, str) or not group for group in groups):
        raise UserError(f"context_templates: {editor} wants lists that are not empty, {want}; got {list(templates)!r}")
    for text in (text for group in groups for text in group):
        if not isinstance(text, str) or text.count(SLOT) != 1:
            raise UserError(f"context_templates: {text!r} should be a text with {SLOT} once, where the prompt goes")
    if groups[0][0] != SLOT:
        raise UserError(
            f"context_templates: the first should be the bare {SLOT!r}, as in {want}; got {groups[0][0]!r}. The edit "
            f"is measured from the prompt on its own"
        )


def sample_templates(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: TemplatePlan, seed: int
) -> list[str] | list[list[str]]:
    """Sample an editor's context templates from the model.

    Returns:
        A flat list, or for a nested plan a list of lists; the bare template `{}` is always the first.
    """
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for tokens, count in plan.length_params:
        for word in START_WORDS:
            for ids in _sample(model, encode(tokenizer, word), tokens, count // len(START_WORDS), generator):
                decoded = tokenizer.decode(ids, skip_special_tokens=True)
                assert isinstance(decoded, str), "one row of ids was decoded, which makes one text"
                text = unicodedata.normalize("NFKD", decoded)
                text = text.replace("\n\n", " ").replace("{", plan.braces).replace("}", plan.braces)
                samples.append(f"{text}. {SLOT}")
    if plan.nested:
        return [[SLOT], samples] if samples else [[SLOT]]  # a mean over no samples is no number
    return [SLOT, *samples]


@torch.no_grad()
def _sample(
    model: PreTrainedModel, start: list[int], length: int, count: int, generator: torch.Generator
) -> list[list[int]]:
    """`count` continuations of `start` up to `length` tokens in all, each token drawn from the TOP_K likeliest."""
    ids: Tensor = torch.tensor([start] * count, device=input_device(model))
    while count and ids.shape[1] < length:
        logits = model(input_ids=ids).logits[:, -1].double().cpu()
        top = torch.topk(logits, min(TOP_K, logits.shape[1]), dim=1)
        # Drawn on the CPU in float64, so that the draw itself does not depend on the device.
        drawn = torch.multinomial(top.values.softmax(dim=1), 1, generator=generator)
        ids = torch.cat([ids, top.indices.gather(1, drawn).to(ids.device)], dim=1)
    return ids.tolist()
