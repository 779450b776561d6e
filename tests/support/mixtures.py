"""Mixtures of experts, tiny and random, made from their configurations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.support.decoders import COMMON, GROUPED, HIDDEN, LAYERS, build

EXPERTS, PICKED, INNER = 4, 2, 16
SIZES = {"num_experts_per_tok": PICKED, "initializer_range": 0.3}
LATENT = {
    "q_lora_rank": None,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 4,
}
#: By name: (model type, configuration, path of a mixture in its block, name of its router).
MIXTURES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "qwen3_moe": (
        "qwen3_moe", GROUPED | SIZES | {"num_experts": EXPERTS, "moe_intermediate_size": INNER}, "mlp", "gate",
    ),
    "mixtral": ("mixtral", GROUPED | SIZES | {"num_local_experts": EXPERTS, "intermediate_size": INNER}, "mlp", "gate"),
    "olmoe": ("olmoe", GROUPED | SIZES | {"num_experts": EXPERTS, "intermediate_size": INNER}, "mlp", "gate"),
    "gpt_oss": (
        "gpt_oss", GROUPED | SIZES | {"num_local_experts": EXPERTS, "intermediate_size": HIDDEN}, "mlp", "router",
    ),
    "qwen2_moe": (
        "qwen2_moe",
        GROUPED | SIZES | {
            "num_experts": EXPERTS, "moe_intermediate_size": INNER, "shared_expert_intermediate_size": 24,
        },
        "mlp", "gate",
    ),
    "deepseek_v3": (
        "deepseek_v3",
        GROUPED | SIZES | LATENT | {
            "num_local_experts": EXPERTS, "n_routed_experts": EXPERTS, "moe_intermediate_size": INNER,
            "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4,
        },
        "mlp", "gate",
    ),
}  # fmt: skip
ROUTED = ("qwen3_moe", "mixtral", "olmoe", "gpt_oss")  # without a shared expert
SHARED = ("qwen2_moe", "deepseek_v3")
every_mixture = pytest.mark.parametrize("name", MIXTURES)
every_routed = pytest.mark.parametrize("name", ROUTED)
every_shared = pytest.mark.parametrize("name", SHARED)


def mixture_model(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> PreTrainedModel:
    """A random mixture; `changes` are of its configuration."""
    kind, config, _, _ = MIXTURES[name]
    model = build(kind, config | changes)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # some are zero or empty at the beginning: biases, routers
        if parameter.ndim == 1 and not bool(torch.isfinite(parameter).all() and parameter.any()):
            parameter.data.zero_()
        elif parameter.ndim > 1 and not bool((parameter != 0).any()):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    if dtype == torch.float64:  # transformers' own choice has no product of float64
        model.set_experts_implementation("eager")
    return model.to(dtype).eval()


__all__ = [
    "COMMON", "EXPERTS", "HIDDEN", "INNER", "LAYERS", "MIXTURES", "PICKED", "ROUTED", "SHARED", "every_mixture",
    "every_routed", "every_shared", "mixture_model",
]  # fmt: skip
