"""Editing works on decoders of many kinds, whose parts are found by structure; the others are refused.

Every model is tiny, random and made here from its configuration.
"""

from __future__ import annotations

import pytest
import torch

from lm_eval_edit import UserError, edit_model
from lm_eval_edit.editors._shared.forward import PartialForward
from lm_eval_edit.editors._shared.rows import align, fact_rows
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.rome import Rome, RomeOptions
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from tests.support.decoders import CASES, COMMON, GROUPED, HIDDEN, INNER, LAYERS, build, case, every_case, site
from tests.support.tiny import FACTS, TEMPLATES, grid, same_weights, tiny_tokenizer, weights_of

pytestmark = pytest.mark.libraries


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
        logits = grid(PartialForward(model, architecture, aligned, start), columns).detach()
        for ours, wanted in zip(logits, full, strict=True):
            torch.testing.assert_close(ours[: len(wanted)], wanted, rtol=tolerance, atol=tolerance)


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

STATE = COMMON | {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS}


@pytest.mark.parametrize(
    ("model_type", "config", "message"),
    [
        (
            "llama4_text",  # every expert sees every token, scaled by the router
            GROUPED | {"num_local_experts": 4, "intermediate_size_mlp": 48},
            r"layers.0 holds feed_forward.experts.gate_up_proj \(4x32x160\), experts",
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
    assert "Other experts and state-space blocks cannot be edited" in str(caught.value)
    with pytest.raises(UserError, match=message):
        edit_model(model, tiny_tokenizer(), [FACTS[0]], "rome", options={"layers": [1]}, progress=False)


def test_experts_in_a_list_are_refused():
    model = build("llama", GROUPED)
    for layer in model.model.layers:
        layer.mlp.experts = torch.nn.ModuleList(torch.nn.Linear(HIDDEN, HIDDEN) for _ in range(2))
    with pytest.raises(
        UserError, match=r"model.layers.0 holds 2 modules in mlp.experts, experts by their look"
    ) as caught:
        Architecture.discover(model)
    assert "own code: leave trust_remote_code out where transformers has the model" in str(caught.value)


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
