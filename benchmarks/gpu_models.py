"""What benchmarks/gpu.py works on, made in place: models of published shapes, tokenizers, second moments, archives.

Weights are random, so nothing is downloaded and nothing is learnt from the answers; time, memory and rounding do not
depend on what a model knows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from benchmarks.editing import START, WORDS
from lm_eval_edit.cost.run import CHARACTERS_PER_TOKEN, SIZES
from lm_eval_edit.editors.mend.archive import save_archive
from lm_eval_edit.editors.mend.network import MendNetwork, inner_module
from lm_eval_edit.models.architecture import Architecture, linear_shape
from lm_eval_edit.tasklib.suite.catalogue import TASKS

_PLAIN = {"bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.02}
_NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
#: The models that presets are published for, and the same families small enough for a CPU.
CONFIGS: dict[str, PretrainedConfig] = {
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25, **_NO_DROPOUT, **_PLAIN),
    "llama-7b": LlamaConfig(**_PLAIN),
}
SMALL: dict[str, PretrainedConfig] = {
    "gpt2-xl": GPT2Config(n_embd=256, n_layer=12, n_head=4, vocab_size=2000, **_NO_DROPOUT, **_PLAIN),
    "llama-7b": LlamaConfig(
        hidden_size=256, num_hidden_layers=12, num_attention_heads=4, num_key_value_heads=4, intermediate_size=688,
        vocab_size=2000, **_PLAIN,
    ),
}  # fmt: skip
TINY: dict[str, PretrainedConfig] = {
    "gpt2-xl": GPT2Config(n_embd=32, n_layer=4, n_head=2, vocab_size=600, n_positions=512, **_NO_DROPOUT, **_PLAIN),
    "llama-7b": LlamaConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2, intermediate_size=96,
        vocab_size=600, max_position_embeddings=512, **_PLAIN,
    ),
}  # fmt: skip


def make_model(config: PretrainedConfig, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A random model, built where it will be: a 7B model in float32 would take minutes through the CPU."""
    devices = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()


def make_tokenizer(config: PretrainedConfig) -> PreTrainedTokenizerFast:
    """One token per word, with as many entries as the model's vocabulary."""
    words = ["<|endoftext|>", *START, "mother", "tongue", "of", "is", "a", ".", *WORDS]
    words += [f"v{i}" for i in range(config.vocab_size - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict.fromkeys(("unk_token", "eos_token", "pad_token", "bos_token"), "<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def make_moment(width: int, seed: int, device: str) -> Tensor:
    """(f, f) E[k kᵀ] of 2 f random keys, in float32: its eigenvalues lie between 0.003 and 0.09.

    That AlphaEdit's published threshold of 0.02 is among them gives it a null space of about half the directions.
    """
    generator = torch.Generator(device).manual_seed(seed)
    keys = torch.randn(2 * width, width, generator=generator, device=device)
    return keys.T @ keys * (0.03 / len(keys))


def make_moments(config: PretrainedConfig, layers: Sequence[int], device: str) -> dict[str, Tensor]:
    """A moment for each of some layers' down-projections, by module name."""
    with torch.device("meta"):
        architecture = Architecture.discover(AutoModelForCausalLM.from_config(config))
    names = architecture.down_projections
    return {names[layer]: make_moment(architecture.key_size, layer, device) for layer in layers}


def make_archive(config: PretrainedConfig, inner_params: Sequence[str], file: Path) -> None:
    """A MEND archive of the published size (rank 1920, two layers) that was never trained but has its statistics."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = [linear_shape(inner_module(model, name)) for name in inner_params]
    generator = torch.Generator().manual_seed(0)
    network = MendNetwork(inner_params, shapes, generator=generator)
    for transform in network.mend.values():
        transform.observe(*(torch.randn(64, width, generator=generator) for width in transform.widths))
    save_archive(file, network.state_dict(), inner_params, {})


def default_inner_params(config: PretrainedConfig) -> list[str]:
    """The last three layers' down-projections."""
    with torch.device("meta"):
        architecture = Architecture.discover(AutoModelForCausalLM.from_config(config))
    return [architecture.weight(layer) for layer in range(max(0, architecture.n_layers - 3), architecture.n_layers)]


def make_requests(count: int, longest: int) -> list[tuple[str, dict[str, Any]]]:
    """(prompt, generation arguments) as the suite would send them: tasks in the proportion of their documents.

    Lengths are drawn with each task's mean and spread, at four characters a token and one token a word.

    Args:
        count: Prompts in all.
        longest: Tokens that prompt and answer may have together.
    """
    draw = random.Random(0)
    names = list(SIZES)
    chosen = draw.choices(names, weights=[SIZES[name].documents for name in names], k=count)
    requests = []
    for name in chosen:
        size, new = SIZES[name], TASKS[name].new_tokens
        deviation = (size.spread**2 - size.characters**2) ** 0.5
        length = round(max(draw.gauss(size.characters, deviation), 40) / CHARACTERS_PER_TOKEN)
        words = draw.choices(WORDS, k=min(length, longest - new))
        requests.append((" ".join(words), {"until": [], "do_sample": False, "max_gen_toks": new}))
    return requests
