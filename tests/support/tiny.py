"""Small models, tokenizers and facts that tests build for themselves: no network, no shared folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from lm_eval_edit import Fact
from lm_eval_edit.editors._shared.forward import PartialForward
from lm_eval_edit.models.architecture import Architecture

SENTENCES = (
    "The mother tongue of was born in a city the and is . , ? weather fine Therefore Because I You",
    "Nils Albrecht Greta Dumont Boris Lindqvist Rosa Novak French Spanish German Czech Prague Berlin Vienna Oslo",
)
WORDS = [word for sentence in SENTENCES for word in sentence.split()]

# A random model carries little from one position to another, so only a fact whose subject ends its prompt can be learnt
# by it: the first two. The others have a tail, as most real prompts do.
FACTS = (
    Fact("Nils Albrecht", "The mother tongue of {}", "Spanish", "French", id="0"),
    Fact("Greta Dumont", "the city of {}", "German", "Czech", id="1"),
    Fact("Boris Lindqvist", "{} was born in", "Prague", "Berlin", id="2"),
    Fact("Rosa Novak", "{} was born in the city of", "Vienna", "Oslo", id="3"),
)
LEARNABLE = FACTS[:2]
TEMPLATES = ("{}", "The weather is fine . {}", "Therefore . {}")
NESTED_TEMPLATES = (TEMPLATES[:1], TEMPLATES[1:])  # the MEMIT family's form of the same


def tiny_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """One token per word of WORDS; with `bos`, texts begin with <|endoftext|>."""
    vocabulary = {word: index for index, word in enumerate(["<|endoftext|>", *dict.fromkeys(WORDS)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


def tiny_model(dtype: torch.dtype = torch.float32, seed: int = 0) -> GPT2LMHeadModel:
    """A random 3-layer GPT-2, d = 32, f = 96."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=64, n_positions=48, n_embd=32, n_layer=3, n_head=2, n_inner=96,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, initializer_range=0.3, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).to(dtype).eval()


def tiny_llama(dtype: torch.dtype = torch.float32, **changes: Any) -> LlamaForCausalLM:
    """A random LLaMA of the same sizes, two query heads to a key-value head; `changes` are of its configuration."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 48, "initializer_range": 0.3, "bos_token_id": 0,
        "eos_token_id": 0,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**sizes | changes)).to(dtype).eval()


def save_tiny(folder: Path, model: torch.nn.Module | None = None, **how: Any) -> Path:
    """A checkpoint of `tiny_model`, or of another model of its words, with `tiny_tokenizer`; returns its folder."""
    (model or tiny_model()).save_pretrained(folder, **how)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_facts(file: Path, facts: Iterable[Fact] = FACTS) -> Path:
    """Facts as JSON lines of the package's own form; returns the file."""
    file.write_text("".join(json.dumps(fact.record()) + "\n" for fact in facts), encoding="utf-8")
    return file


@torch.no_grad()
def tiny_second_moments(model: PreTrainedModel, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """E[k kᵀ] of every layer of a tiny model over 960 random tokens, ten times its key dimension."""
    ids = torch.randint(1, model.config.vocab_size, (20, 48), generator=torch.Generator().manual_seed(0))
    keys, handles = {}, []
    for name in Architecture.discover(model).down_projections:
        handles.append(
            model.get_submodule(name).register_forward_pre_hook(
                lambda module, args, name=name: keys.update({name: args[0].flatten(0, 1).to(dtype)})
            )
        )
    model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: k.T @ k / len(k) for name, k in keys.items()}


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same_weights(model: torch.nn.Module, kept: dict[str, torch.Tensor]) -> bool:
    """Whether every parameter has the bits that were kept."""
    return all(torch.equal(parameter, kept[name]) for name, parameter in model.named_parameters())


def grid(forward: PartialForward, columns: torch.Tensor) -> torch.Tensor:
    """(R, C, V) logits of a partial pass at some columns of every row."""
    rows = torch.arange(len(forward.rows))
    logits = forward.logits(rows.repeat_interleave(len(columns)), columns.repeat(len(rows)))
    return logits.view(len(rows), len(columns), -1)
