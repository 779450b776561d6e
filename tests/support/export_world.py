"""Tiny models, ledgers and edited models for the tests of exports, and how other engines load them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import peft
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from lm_eval_edit import edit_model
from tests.support.tiny import FACTS, TEMPLATES, save_tiny, tiny_llama, tiny_model, tiny_second_moments, tiny_tokenizer


def load(folder: Path) -> PreTrainedModel:
    """A checkpoint as any engine would load it."""
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def with_adapter(base: Path, folder: Path) -> peft.PeftModel:
    """A checkpoint with an adapter as `lm_eval --model hf` loads the two."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(load(base), str(folder)).eval()


@torch.no_grad()
def logits(model, tokenizer, texts: Sequence[str]) -> torch.Tensor:
    """(positions of all texts, vocabulary)."""
    return torch.cat([model(input_ids=torch.tensor([tokenizer.encode(text)])).logits[0] for text in texts])


def base_of(world: Path, ledger: str) -> Path:
    """The unedited model of one of the ledgers."""
    kind = ledger.partition("-")[2]
    return world / (kind or "model")


def make_world(root: Path) -> Path:
    """Fill a folder: models, a ledger for each of some editors, and `<ledger>-edited`.

    The models are `model` (a tiny GPT-2 in float32), `float16` and `bfloat16` (the same), and `llama`; a ledger is
    named `<editor>` or `<editor>-<model>`.
    """
    for name in ("model", "float16", "bfloat16"):
        save_tiny(root / name, tiny_model(getattr(torch, name, torch.float32)))
    options = {"v_num_grad_steps": 5, "layers": [1], "context_templates": list(TEMPLATES)}
    save_tiny(root / "llama", tiny_llama())
    memit = options | {"context_templates": [["{}"], ["Therefore . {}"]], "layers": [0, 1]}
    ledgers = {
        "rome": ("rome", 1, options),
        "memit": ("memit", 2, memit),
        "memit-float16": ("memit", 2, memit),
        "memit-bfloat16": ("memit", 2, memit),
        "rect": ("rect", 1, options | {"over": "rome"}),
        "prune": ("prune", 1, options | {"over": "rome", "alpha": 50.0, "v_lr": 5.0, "clamp_norm_factor": 50}),
        "ft": ("ft", 1, {"layers": [1], "num_steps": 2, "lr": 1e-2}),
        "ft-llama": ("ft", 1, {"layers": [1], "num_steps": 2, "lr": 1e-2}),
    }
    for name, (editor, batch, given) in ledgers.items():
        model = load(base_of(root, name))
        edit_model(
            model, tiny_tokenizer(), FACTS, editor, edit_batch_size=batch, options=given,
            second_moments=None if "llama" in name else tiny_second_moments(model), ledger=root / name, progress=False,
        )  # fmt: skip
        model.save_pretrained(root / f"{name}-edited")
    return root
