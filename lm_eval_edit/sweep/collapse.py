"""Whether a model still models language at all: its perplexity on one fixed text.

A collapsed model's perplexity grows by orders of magnitude, so the text hardly matters; it is the ratio to the unedited
model's that is looked at.
"""

from __future__ import annotations

import math

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit.models.devices import input_device

TEXT = (
    "The river rises in the hills to the north and reaches the sea near a small harbour. In spring, when the snow "
    "melts, the meadows along its banks are under water for some weeks, and people who live there move their "
    "animals to higher ground. A bridge of stone was built three hundred years ago; before that, travellers "
    "crossed by boat. Most families grow barley, keep sheep and sell cheese at the market, which is held every "
    "Saturday in front of the town hall. The school has two teachers. One of them also plays the organ in the "
    "church, and in summer she takes the older children up to the old tower, from where one can see both the "
    "mountains and the coast."
)


@torch.no_grad()
def perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """exp of the mean negative log-likelihood of `TEXT`'s tokens, each given all before it; inf if not a number."""
    device = input_device(model)
    room = getattr(model.config, "max_position_embeddings", None) or 1024
    ids = torch.tensor([tokenizer.encode(TEXT)[:room]])
    logits = model(input_ids=ids.to(device)).logits[0, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.cpu(), ids[0, 1:], reduction="none")
    mean = float(losses.double().mean())
    return math.exp(min(mean, 700.0)) if math.isfinite(mean) else math.inf
