"""Decoders of many kinds, tiny and random, made from their configurations."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lm_eval_edit.editors._shared.rows import prompt_row
from lm_eval_edit.models.architecture import Architecture
from tests.support.tiny import tiny_tokenizer

LAYERS, HIDDEN, INNER = 3, 32, 80
COMMON = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
PLAIN = COMMON | {
    "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "max_position_embeddings": 48,
}  # fmt: skip
GROUPED = PLAIN | {"num_key_value_heads": 2, "head_dim": 8}  # two query heads share one key-value head
WINDOW = GROUPED | {"sliding_window": 4}  # shorter than the prompts
GPT = COMMON | {"n_embd": HIDDEN, "n_inner": INNER, "n_layer": LAYERS, "n_head": 4, "n_positions": 48}
OPT = COMMON | {
    "hidden_size": HIDDEN, "ffn_dim": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "max_position_embeddings": 48, "word_embed_proj_dim": HIDDEN,
}  # fmt: skip
FALCON = {name: value for name, value in PLAIN.items() if name != "intermediate_size"} | {"ffn_hidden_size": INNER}


class Case(NamedTuple):
    """One kind of decoder.

    Args:
        model_type: As transformers calls it.
        config: Arguments of its configuration.
        blocks: Module path of a block, `{}` at the layer's place.
        projection: Path of the down-projection within its block.
        key_size: Width of the MLP's inner space.
        rounds: Computes attention in float32 whatever the model's dtype.
        bos: Tested with a tokenizer that begins each text with a token of its own.
    """

    model_type: str
    config: dict[str, Any]
    blocks: str
    projection: str
    key_size: int = INNER
    rounds: bool = False
    bos: bool = False


H, M = "transformer.h.{}", "model.layers.{}"
CASES = {
    "gpt2": Case("gpt2", GPT, H, "mlp.c_proj"),
    "gpt2-untied": Case("gpt2", GPT | {"tie_word_embeddings": False}, H, "mlp.c_proj"),
    "gptj": Case("gptj", GPT | {"rotary_dim": 4}, H, "mlp.fc_out", rounds=True),  # parallel, head with a bias
    "gpt_neox": Case("gpt_neox", PLAIN, "gpt_neox.layers.{}", "mlp.dense_4h_to_h"),  # parallel
    "gpt_neox-sequential": Case(
        "gpt_neox", PLAIN | {"use_parallel_residual": False}, "gpt_neox.layers.{}", "mlp.dense_4h_to_h"
    ),
    "gpt_bigcode": Case("gpt_bigcode", GPT, H, "mlp.c_proj"),  # one key-value head
    "opt": Case("opt", OPT, "model.decoder.layers.{}", "fc2", bos=True),
    "opt-projected": Case(
        "opt", OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False}, "model.decoder.layers.{}", "fc2"
    ),
    "llama": Case("llama", GROUPED, M, "mlp.down_proj", bos=True),
    "llama-tied-biased": Case(
        "llama", GROUPED | {"tie_word_embeddings": True, "mlp_bias": True, "attention_bias": True}, M, "mlp.down_proj"
    ),
    "mistral": Case("mistral", WINDOW, M, "mlp.down_proj", bos=True),
    "qwen2": Case("qwen2", WINDOW | {"use_sliding_window": True, "max_window_layers": 1}, M, "mlp.down_proj"),
    "qwen3": Case("qwen3", GROUPED, M, "mlp.down_proj"),  # normalised queries and keys
    "gemma2": Case(  # tied, soft-capped, norms after attention and MLP, every other layer with a window
        "gemma2",
        WINDOW | {"query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0},
        M,
        "mlp.down_proj",
        bos=True,
        rounds=True,
    ),
    "gemma3": Case("gemma3_text", WINDOW | {"sliding_window_pattern": 2}, M, "mlp.down_proj", bos=True),
    "gemma4": Case(
        "gemma4_text",
        WINDOW | {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 64},
        M,
        "mlp.down_proj",
    ),
    "phi": Case("phi", PLAIN, M, "mlp.fc2"),  # parallel, biases
    "phi3": Case("phi3", WINDOW, M, "mlp.down_proj"),
    "olmo2": Case("olmo2", GROUPED, M, "mlp.down_proj"),  # norms after attention and MLP only
    "falcon-old": Case("falcon", FALCON | {"multi_query": True}, H, "mlp.dense_4h_to_h"),
    "falcon-alibi": Case(
        "falcon",
        FALCON | {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True},
        H,
        "mlp.dense_4h_to_h",
    ),
    "falcon-new": Case(
        "falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}, H, "mlp.dense_4h_to_h"
    ),
    "bloom": Case(  # no position_ids
        "bloom",
        COMMON | {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": 4},
        H,
        "mlp.dense_4h_to_h",
        4 * HIDDEN,
        rounds=True,
    ),
    "mpt": Case(
        "mpt",
        COMMON | {"d_model": HIDDEN, "n_layers": LAYERS, "n_heads": 4, "max_seq_len": 48},
        "transformer.blocks.{}",
        "ffn.down_proj",
        4 * HIDDEN,
        rounds=True,
    ),
    "starcoder2": Case("starcoder2", WINDOW, M, "mlp.c_proj"),
    "cohere": Case("cohere", GROUPED | {"logit_scale": 0.5}, M, "mlp.down_proj"),  # parallel
    "granite": Case("granite", GROUPED | {"residual_multiplier": 0.5, "logits_scaling": 2.0}, M, "mlp.down_proj"),
    "stablelm": Case("stablelm", GROUPED, M, "mlp.down_proj"),
}
every_case = pytest.mark.parametrize("name", CASES)


def build(model_type: str, config: dict[str, Any], dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model with random weights, its biases and norms too."""
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"the installed transformers has no {model_type}")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def case(name: str, dtype: torch.dtype = torch.float64):
    """(model, tokenizer, parts) of a case."""
    of = CASES[name]
    model = build(of.model_type, of.config, dtype)
    if name == "mpt" and dtype == torch.float64:
        try:
            model(torch.tensor([[1, 2]]))
        except RuntimeError as error:  # transformers 5.0: a mask of float64's least number, as a float32
            pytest.skip(f"the installed transformers cannot run {name} in float64: {error}")
    return model, tiny_tokenizer(of.bos), Architecture.discover(model)


def site(model, architecture, tokenizer, fact):
    """The key and the output of layer 1's down-projection at the subject, computed the plain way."""
    seen = {}
    projection = model.get_submodule(architecture.down_projections[1])
    handle = projection.register_forward_hook(lambda m, args, out: seen.update(key=args[0], out=out.clone()))
    row = prompt_row(tokenizer, fact.template, fact.subject)
    with torch.no_grad():
        model(input_ids=torch.tensor([row.ids]))
    handle.remove()
    return seen["key"].view(-1, architecture.key_size)[row.subject_last], seen["out"].view(-1, HIDDEN)[row.subject_last]
