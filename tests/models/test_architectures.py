"""Editing works on decoders of many kinds, whose parts are found by structure; the others are refused.

Every model is tiny, random and made here from its configuration.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lm_eval_edit import UserError, edit_model
from lm_eval_edit.editors._shared.forward import PartialForward
from lm_eval_edit.editors._shared.rows import align, fact_rows, prompt_row
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.rome import Rome, RomeOptions
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from tests.support.tiny import FACTS, TEMPLATES, same_weights, tiny_tokenizer, weights_of

pytestmark = pytest.mark.libraries

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


@every_case
def test_parts_are_found_by_structure(name):
    of = CASES[name]
    _, _, found = case(name)
    assert found.blocks == tuple(of.blocks.format(layer) for layer in range(LAYERS))
    assert found.down_projections == tuple(f"{block}.{of.projection}" for block in found.blocks)
    assert (found.hidden_size, found.key_size) == (HIDDEN, of.key_size)


@every_case
def test_partial_forward_equals_the_full_one(name):
    model, tokenizer, architecture = case(name)
    rows = [row for fact in FACTS for row in fact_rows(tokenizer, fact, TEMPLATES)]
    aligned = align(rows, torch.device("cpu"))
    columns = torch.arange(aligned.column, aligned.input_ids.shape[1])
    tolerance = 1e-5 if CASES[name].rounds else 1e-10
    full = []
    with torch.no_grad():
        for row in rows:
            full.append(model(input_ids=torch.tensor([row.ids])).logits[0, row.subject_last :])
        early = rows[-1].ids[:1]
        elsewhere = model(input_ids=torch.tensor([[(early[0] + 7) % 64, *rows[-1].ids[1:]]])).logits[0]
    assert not torch.allclose(elsewhere[rows[-1].subject_last :], full[-1], atol=100 * tolerance), "the past matters"
    for start in range(LAYERS + 1):
        logits = PartialForward(model, architecture, aligned, start).logits(columns).detach()
        for ours, wanted in zip(logits, full, strict=True):
            torch.testing.assert_close(ours[: len(wanted)], wanted, rtol=tolerance, atol=tolerance)


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


@every_case
def test_rome_writes_the_target_value_and_restores(name):
    model, tokenizer, architecture = case(name)
    fact, kept = FACTS[2], weights_of(model)
    options = {"layers": (1,), "v_num_grad_steps": 4, "context_templates": TEMPLATES}
    context = EditContext(model, tokenizer, architecture, TEMPLATES, SecondMoments())
    value = Rome(RomeOptions(**options))._targets(context, fact, 1).value[0]
    key, before = site(model, architecture, tokenizer, fact)
    ledger = edit_model(model, tokenizer, [fact], "rome", options=options, progress=False)
    key_after, after = site(model, architecture, tokenizer, fact)
    tolerance = 1e-5 if CASES[name].rounds else 1e-9
    torch.testing.assert_close(key_after, key)  # what lies below the edited matrix is unchanged
    torch.testing.assert_close(after, value, rtol=tolerance, atol=tolerance)
    assert (before - value).norm() > 0.1 * value.norm()
    assert [p for p, w in model.named_parameters() if not torch.equal(w, kept[p])] == [architecture.weight(1)]
    ledger.restore()
    assert same_weights(model, kept)


@every_case
def test_memit_writes_two_layers_and_restores(name):
    model, tokenizer, architecture = case(name)
    kept = weights_of(model)
    moments = {path: torch.eye(architecture.key_size, dtype=torch.float64) for path in architecture.down_projections}
    ledger = edit_model(
        model, tokenizer, FACTS[:2], "memit", edit_batch_size=2, options={"layers": [0, 1], "v_num_grad_steps": 3},
        context_templates=[["{}"], list(TEMPLATES[1:])], second_moments=moments, progress=False,
    )  # fmt: skip
    changed = [p for p, w in model.named_parameters() if not torch.equal(w, kept[p])]
    assert changed == [architecture.weight(0), architecture.weight(1)]
    ledger.restore()
    assert same_weights(model, kept)


KN_REFUSES = {
    "opt-projected": "this model's have 16 dimensions, its value vectors 32",
    "phi3": "a fused gate and up projection",
}


@every_case
def test_kn_writes_rows_or_says_why_not(name):
    model, tokenizer, architecture = case(name)
    kept = weights_of(model)
    if name in KN_REFUSES:
        with pytest.raises(UserError, match=KN_REFUSES[name]):
            edit_model(model, tokenizer, FACTS[:1], "kn", progress=False)
        return
    ledger = edit_model(model, tokenizer, FACTS[:1], "kn", progress=False)
    changed = [p for p, w in model.named_parameters() if not torch.equal(w, kept[p])]
    assert changed and set(changed) <= {architecture.weight(layer) for layer in range(LAYERS)}
    ledger.restore()
    assert same_weights(model, kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_case
def test_half_precision_models_are_edited_in_float32(name, dtype):
    model, tokenizer, architecture = case(name, dtype)
    kept = weights_of(model)
    options = {"layers": [1], "v_num_grad_steps": 3}
    ledger = edit_model(
        model, tokenizer, [FACTS[2]], "rome", options=options, context_templates=TEMPLATES, progress=False
    )
    ((parameter, delta),) = ledger.operations[0].deltas.items()
    assert parameter == architecture.weight(1) and {t.dtype for t in delta.tensors().values()} == {torch.float32}
    report = ledger.weights.report()[parameter]
    assert 0 < report["rounding_loss"] < 0.5 and report["delta_norm"] > 0
    assert model.get_parameter(parameter).dtype == dtype
    ledger.restore()
    assert same_weights(model, kept)


# ------------------------------------------------------------------------------------------------------------ refusals

MOE = GROUPED | {"num_experts_per_tok": 2}
STATE = COMMON | {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS}


@pytest.mark.parametrize(
    ("model_type", "config", "message"),
    [
        ("mixtral", MOE | {"num_local_experts": 4}, r"layers.0 holds mlp.experts.gate_up_proj \(4x160x32\), experts"),
        (
            "qwen2_moe",
            MOE | {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24},
            r"mlp.experts.gate_up_proj \(4x32x32\), experts",
        ),
        ("mamba", STATE | {"state_size": 4}, "MambaForCausalLM keeps no keys and values from token to token"),
        ("rwkv", STATE | {"attention_hidden_size": HIDDEN}, "RwkvForCausalLM keeps no keys and values"),
        ("recurrent_gemma", GROUPED, "RecurrentGemmaForCausalLM keeps no keys and values from token to token"),
    ],
)
def test_experts_and_state_spaces_are_refused(model_type, config, message):
    model = build(model_type, config)
    with pytest.raises(UserError, match=message) as caught:
        Architecture.discover(model)
    assert "mixture-of-experts and state-space blocks cannot be edited" in str(caught.value)
    with pytest.raises(UserError, match=message):
        edit_model(model, tiny_tokenizer(), [FACTS[0]], "rome", options={"layers": [1]}, progress=False)


def test_experts_in_a_list_are_refused():
    model = build("llama", GROUPED)
    for layer in model.model.layers:
        layer.mlp.experts = torch.nn.ModuleList(torch.nn.Linear(HIDDEN, HIDDEN) for _ in range(2))
    with pytest.raises(UserError, match=r"model.layers.0 holds 2 modules in mlp.experts, experts by their look"):
        Architecture.discover(model)


def test_absolute_positions_that_cannot_be_given_are_refused():
    config = COMMON | {
        "d_model": HIDDEN, "decoder_layers": LAYERS, "decoder_ffn_dim": INNER, "decoder_attention_heads": 4,
        "encoder_layers": LAYERS, "encoder_ffn_dim": 8, "encoder_attention_heads": 4, "max_position_embeddings": 48,
    }  # fmt: skip
    model = build("bart", config)
    with pytest.raises(UserError, match="BartForCausalLM embeds absolute positions and does not accept position_ids"):
        edit_model(
            model, tiny_tokenizer(), [FACTS[0]], "rome", options={"layers": [1]}, context_templates=TEMPLATES,
            progress=False,
        )  # fmt: skip


def test_shared_keys_and_values_are_refused():
    config = GROUPED | {
        "num_kv_shared_layers": 1,
        "layer_types": ["full_attention"] * LAYERS,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 64,
    }
    model = build("gemma4_text", config)
    with pytest.raises(UserError, match="does not keep keys and values of its own, for every token, in each of its 3"):
        edit_model(
            model, tiny_tokenizer(), [FACTS[0]], "rome", options={"layers": [1]}, context_templates=TEMPLATES,
            progress=False,
        )  # fmt: skip


def test_an_mlp_as_wide_as_the_residual_stream_and_one_narrower():
    for inner in (HIDDEN, 24):
        found = Architecture.discover(build("llama", GROUPED | {"intermediate_size": inner}))
        assert found.down_projections[1] == "model.layers.1.mlp.down_proj" and found.key_size == inner
