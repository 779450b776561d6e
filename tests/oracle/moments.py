"""The second moments that the repository's oracle was made with, made again from the demo's own facts."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit import load_facts

LAYERS = (0, 1)
FACTS = 200
RIDGE = 0.05  # of the mean eigenvalue: EasyEdit inverts C in float32


@torch.no_grad()
def demo_moments(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """{module: (f, f) E[k kᵀ]} of the demo model's first two layers over the texts of some of its facts."""
    sums = {f"transformer.h.{layer}.mlp.c_proj": torch.zeros(512, 512, dtype=torch.float64) for layer in LAYERS}
    count = 0

    def add(name: str):
        def hook(module, args):
            keys = args[0].flatten(0, -2).double()
            sums[name] += keys.T @ keys

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(add(name)) for name in sums]
    for fact in load_facts("demo")[:FACTS]:
        ids = tokenizer.encode(fact.text + fact.target)
        count += len(ids)
        model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    for moment in sums.values():
        moment /= count
        moment.diagonal().add_(RIDGE * moment.diagonal().mean())
    return {name: moment.float() for name, moment in sums.items()}  # as EasyEdit keeps them
