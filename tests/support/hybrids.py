"""Hybrids, tiny and random: attention here, a recurrence there; dense MLPs, experts, and kinds that are refused."""

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
CONVOLUTIONS = {"layer_types": ["conv", "full_attention"] * 2, "conv_L_cache": 3}
JAMBA = {
    "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "num_experts_per_tok": 1, "mamba_d_state": 8,
    "mamba_dt_rank": 4, "use_mamba_kernels": False,
}  # fmt: skip
HYBRIDS = {
    "qwen3_5_text": COMMON | LINEAR | {"head_dim": 16},
    "falcon_h1": COMMON | MAMBA | {"mamba_d_ssm": 64, "head_dim": 16},
    "olmo_hybrid": COMMON | LINEAR,
    "granitemoehybrid": COMMON | MAMBA | {
        "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 96, "mamba_expand": 2,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "jamba": COMMON | JAMBA,
    "bamba": COMMON | MAMBA | {"mamba_expand": 2, "attn_layer_indices": [1, 3]},
    "lfm2": COMMON | CONVOLUTIONS | {"block_auto_adjust_ff_dim": False, "block_ff_dim": 96},
    "qwen3_next": COMMON | LINEAR | {"head_dim": 16, "mlp_only_layers": [0, 1, 2, 3]},
}  # fmt: skip
PICKED = {"num_experts": 4, "num_experts_per_tok": 2}
#: With a mixture of experts in some blocks or all.
WITH_EXPERTS = {
    "lfm2_moe": COMMON | CONVOLUTIONS | PICKED | {"moe_intermediate_size": 48, "num_dense_layers": 2},
    "minimax": COMMON | {
        "layer_types": LINEAR["layer_types"], "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
        "block_size": 8,
    },
}  # fmt: skip
MAMBA2 = {"mamba_d_state": 8, "mamba_expand": 2, "mamba_ngroups": 1, "mamba_headdim": 16, "chunk_size": 4}
STREAMS = {
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 16,
    "laurel_rank": 8,
    "intermediate_size": [96] * 4,
}
#: Kind -> (its configuration, why it is refused).
REFUSED = {
    "recurrent_gemma": (
        COMMON | {"lru_width": 32, "attention_window_size": 16, "block_types": ["recurrent", "attention"]},
        "RecurrentGemmaForCausalLM keeps no keys and values from token to token",
    ),
    "mamba": (COMMON | {"state_size": 8}, "MambaForCausalLM keeps no keys and values from token to token"),
    "falcon_mamba": (COMMON | {"state_size": 8}, "FalconMambaForCausalLM keeps no keys and values"),
    "rwkv": (COMMON | {"attention_hidden_size": 32}, "RwkvForCausalLM keeps no keys and values from token to token"),
    "zamba2": (
        COMMON | MAMBA2 | {
            "n_mamba_heads": 4, "use_mamba_kernels": False, "num_mem_blocks": 1,
            "layers_block_type": ["mamba", "hybrid"] * 2,
        },
        r"block model\.layers\.0 holds mamba\.conv1d\.weight .* experts or a convolution",
    ),
    "nemotron_h": (
        COMMON | {
            "layers_block_type": ["mamba", "mlp", "attention", "mlp"], "mamba_num_heads": 4, "mamba_head_dim": 16,
            "ssm_state_size": 8, "n_groups": 1, "chunk_size": 4, "head_dim": 16,
        },
        r"block model\.layers\.0 holds mixer\.conv1d\.weight .* experts or a convolution",
    ),
    "zaya": (
        COMMON | {"head_dim": 16, "moe_intermediate_size": 48, "num_experts": 4},
        "the blocks of ZayaForCausalLM hand on something of width .* beside its hidden states",
    ),
    "gemma3n_text": (
        COMMON | STREAMS | {"head_dim": 16, "vocab_size_per_layer_input": 64, "intermediate_size": [96] * 4},
        "the blocks of Gemma3nForCausalLM hand on hidden states of shape 4x1x2x32",
    ),
}  # fmt: skip


def config_of(kind, given):
    """A kind's configuration; the test is skipped where the installed transformers lacks it."""
    try:
        return AutoConfig.for_model(kind, **given)
    except ValueError:
        pytest.skip(f"the installed transformers has no {kind}")


def make(kind, dtype=torch.float64):
    config = config_of(kind, (HYBRIDS | WITH_EXPERTS)[kind])
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()
