"""Hybrids with dense MLPs, tiny and random: attention here, a recurrence there."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

COMMON = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 2, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    "max_position_embeddings": 64,
}  # fmt: skip
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4}
HYBRIDS = {
    "qwen3_5_text": COMMON | LINEAR | {"head_dim": 16},
    "falcon_h1": COMMON | MAMBA | {"mamba_d_ssm": 64, "head_dim": 16},
    "olmo_hybrid": COMMON | LINEAR,
    "granitemoehybrid": COMMON | MAMBA | {
        "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 96, "mamba_expand": 2,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
}  # fmt: skip


def make(kind, dtype=torch.float64):
    try:
        config = AutoConfig.for_model(kind, **HYBRIDS[kind])
    except ValueError:
        pytest.skip(f"the installed transformers has no {kind}")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()
