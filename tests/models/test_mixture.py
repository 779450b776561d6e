"""Mixtures of experts are found by structure, and their keys are what their experts compute with."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from lm_eval_edit import UserError
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.models.mixture import eager_experts, find_mixture
from tests.support.mixtures import (
    EXPERTS,
    HIDDEN,
    INNER,
    LAYERS,
    MIXTURES,
    PICKED,
    SHARED,
    every_mixture,
    mixture_model,
)

pytestmark = pytest.mark.libraries


@every_mixture
def test_parts_are_found_by_structure(name):
    _, _, mixture, router = MIXTURES[name]
    model = mixture_model(name)
    found = Architecture.discover(model)
    dense = 1 if name == "deepseek_v3" else 0
    assert [m is None for m in found.mixtures] == [True] * dense + [False] * (LAYERS - dense)
    for layer, own in enumerate(found.mixtures):
        path = f"model.layers.{layer}.{mixture}"
        if own is None:
            assert found.down_projections[layer] == f"{path}.down_proj" and found.key_sizes[layer] == 80
            continue
        assert (own.path, own.experts, own.router) == (path, f"{path}.experts", f"{path}.{router}")
        assert (own.n_experts, own.top_k, own.down) == (EXPERTS, PICKED, f"{path}.experts.down_proj")
        assert own.key_size == (HIDDEN if name == "gpt_oss" else INNER)  # gpt-oss: as wide as the residual stream
        assert own.transposed == (own.down_bias is not None) == (name == "gpt_oss")
        if name in SHARED:
            assert own.shared == found.down_projections[layer] and "shared_expert" in own.shared
            assert found.weight(layer) == f"{own.shared}.weight" and not found.is_routed(layer)
        else:
            assert own.shared is None and found.weight(layer) == own.down and found.is_routed(layer)
        assert found.routed_mixture(layer) == (None if name in SHARED else own)
        assert found.routed().routed_mixture(layer) == own
        assert found.routed().weight(layer) == own.down and found.routed().key_sizes[layer] == own.key_size


@every_mixture
def test_the_same_is_found_without_weights(name):
    model = mixture_model(name)
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(model.config)
    assert Architecture.discover(shapes) == Architecture.discover(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_they_are_found_in_every_precision(name, dtype):
    assert Architecture.discover(mixture_model(name, dtype)) == Architecture.discover(mixture_model(name))


def test_one_expert_and_experts_half_as_wide_as_the_residual_stream():
    found = Architecture.discover(mixture_model("qwen2_moe", num_experts=1, num_experts_per_tok=1)).mixtures[0]
    assert (found.n_experts, found.top_k, found.router) == (1, 1, "model.layers.0.mlp.gate")
    assert found.key_size == HIDDEN // 2, "gate and up together are as wide as the residual stream"


def test_experts_that_compute_something_else_are_refused():
    model = mixture_model("qwen3_moe")
    experts = type(model.model.layers[1].mlp.experts)
    whole = experts.forward

    class Other(experts):
        def forward(self, *args, **kwargs):
            return 1.5 * whole(self, *args, **kwargs)

    model.model.layers[1].mlp.experts.__class__ = Other
    with pytest.raises(UserError, match=r"model.layers.1 holds a mixture of experts in mlp, and its experts compute"):
        Architecture.discover(model)


def test_experts_that_are_called_otherwise_are_refused():
    model = mixture_model("qwen3_moe")

    class Mixture(type(model.model.layers[1].mlp)):
        def forward(self, hidden):
            flat = hidden.flatten(0, -2)
            _, gates, index = self.gate(flat)
            return self.experts(flat, index, gates[:, :1].expand(-1, 3)).view(hidden.shape)

    model.model.layers[1].mlp.__class__ = Mixture
    block = model.model.layers[1]
    with pytest.raises(UserError, match="wanted are hidden states, picked experts and their gates"):
        find_mixture("model.layers.1", block, HIDDEN)


def test_the_way_experts_are_computed_is_put_back():
    model = mixture_model("qwen3_moe", torch.float32)
    model.set_experts_implementation("batched_mm")
    with pytest.raises(ValueError, match="mine"), eager_experts(model):
        assert model.config._experts_implementation == "eager"
        raise ValueError("mine")
    assert model.config._experts_implementation == "batched_mm"
    Architecture.discover(model)
    assert model.config._experts_implementation == "batched_mm"
    assert re.fullmatch("batched_mm", model.model.layers[0].mlp.experts.config._experts_implementation)
