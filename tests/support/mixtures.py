"""Mixtures of experts, tiny and random, made from their configurations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from lm_eval_edit.models import naming
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.models.mixture import eager_experts
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
LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "full_attention"], "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
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
    "qwen3_next": (  # its first block mixes tokens by a recurrence
        "qwen3_next",
        GROUPED | SIZES | LINEAR | {
            "num_experts": EXPERTS, "moe_intermediate_size": INNER, "shared_expert_intermediate_size": 24,
        },
        "mlp", "gate",
    ),
}  # fmt: skip
ROUTED = ("qwen3_moe", "mixtral", "olmoe", "gpt_oss")  # without a shared expert
SHARED = ("qwen2_moe", "deepseek_v3", "qwen3_next")
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
    model = model.to(dtype).eval()
    with eager_experts(model):
        kept = naming.kept(model).layers
    if name == "qwen3_next" and not kept:
        pytest.skip("the installed transformers keeps this model's keys and values in a form of its own")
    return model


def explicit_second_moments(model: PreTrainedModel, routed: bool = True) -> dict[str, torch.Tensor]:
    """A random positive definite moment of every mixture's experts, (E, f, f); of dense layers (f, f)."""
    architecture = Architecture.discover(model)
    architecture = architecture.routed() if routed else architecture
    generator, moments = torch.Generator().manual_seed(1), {}
    for layer, name in enumerate(architecture.down_projections):
        f, mixture = architecture.key_sizes[layer], architecture.mixtures[layer]
        shape = (mixture.n_experts, f, 2 * f) if mixture and architecture.is_routed(layer) else (f, 2 * f)
        keys = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
        moments[name] = keys @ keys.mT / shape[-1]
    return moments


@torch.no_grad()
def plain_routing(
    model: PreTrainedModel, ids: list[int], layer: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(d,) what a mixture is given at the last of some tokens, (k,) the experts picked there, (k,) their gates."""
    block, seen = model.model.layers[layer].mlp, {}
    router = getattr(block, "router", None) or block.gate
    handles = [
        block.register_forward_pre_hook(lambda module, args: seen.update(hidden=args[0].flatten(0, -2)[-1])),
        router.register_forward_hook(lambda module, args, output: seen.update(routed=output)),
        block.experts.register_forward_pre_hook(lambda module, args: seen.update(called=args)),
    ]
    model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    if isinstance(seen["routed"], tuple):
        _, gates, index = seen["routed"]
    else:  # transformers 5.0's DeepSeek picks outside of the router
        _, index, gates = seen["called"]
    return seen["hidden"], index[-1], gates[-1].to(seen["hidden"].dtype)


@torch.no_grad()
def plain_key(model: PreTrainedModel, ids: list[int], layer: int) -> torch.Tensor:
    """(E f,) the stacked key at the last of some tokens, written out for the kinds of MIXTURES."""
    hidden, index, gates = plain_routing(model, ids, layer)
    experts = model.model.layers[layer].mlp.experts
    stacked = []
    for expert in range(len(experts.down_proj)):
        if hasattr(experts, "gate_up_proj_bias"):  # gpt-oss: interleaved, clamped
            inner = hidden @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
            gate, up = inner[::2].clamp(max=experts.limit), inner[1::2].clamp(-experts.limit, experts.limit)
            key = (up + 1) * gate * torch.sigmoid(experts.alpha * gate)
        else:
            gate, up = (experts.gate_up_proj[expert] @ hidden).chunk(2)
            key = torch.nn.functional.silu(gate) * up
        stacked.append(key * gates[index == expert].sum())
    return torch.cat(stacked)


def side_by_side(model: PreTrainedModel, parameter: str) -> torch.Tensor:
    """W_s (d, E f), a copy."""
    weight = model.get_parameter(parameter).detach()
    transposed = hasattr(model.get_submodule(parameter.rpartition(".")[0]), "gate_up_proj_bias")
    return torch.cat([expert.T if transposed else expert for expert in weight], dim=1)


__all__ = [
    "COMMON",
    "EXPERTS",
    "HIDDEN",
    "INNER",
    "LAYERS",
    "MIXTURES",
    "PICKED",
    "ROUTED",
    "SHARED",
    "every_mixture",
    "every_routed",
    "every_shared",
    "explicit_second_moments",
    "mixture_model",
    "plain_key",
    "plain_routing",
    "side_by_side",
]  # fmt: skip
