"""The models that the oracle's deltas are of: the demo model, and a tiny LLaMA where a method wants its layout."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit import Fact, demo, load_facts
from tests.oracle.moments import demo_moments
from tests.support.tiny import FACTS, TEMPLATES, tiny_llama, tiny_second_moments, tiny_tokenizer


class World(NamedTuple):
    """What a run edits.

    Args:
        name: demo or llama, the end of the run's file names.
        model, tokenizer: Made anew.
        moments: {module: (f, f) E[k kᵀ]} of its first two layers.
        facts: Those that are edited.
        templates: Context templates, flat.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    moments: dict[str, Tensor]
    facts: list[Fact]
    templates: list[str]


def world_of(run: str, dtype: torch.dtype) -> World:
    """That of a run of `make.py`. EasyEdit's SPHERE projects the rows of a weight as it is stored: right for LLaMA."""
    if run != "SPHERE":
        model = AutoModelForCausalLM.from_pretrained(demo.CHECKPOINT, dtype=dtype).eval()
        tokenizer = AutoTokenizer.from_pretrained(demo.CHECKPOINT)
        templates = list(demo.CONTEXT_TEMPLATES[:4])
        return World("demo", model, tokenizer, demo_moments(model, tokenizer), list(load_facts("demo"))[:2], templates)
    llama = tiny_llama(dtype)
    moments = {name: moment.float() for name, moment in tiny_second_moments(llama).items()}
    return World("llama", llama, tiny_tokenizer(), moments, list(FACTS[:2]), list(TEMPLATES))
