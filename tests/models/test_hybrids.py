"""Hybrids with dense MLPs: attention here, a recurrence there, and the same MLP to edit in every block."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lm_eval_edit import UserError, edit_model
from lm_eval_edit.editors._shared.forward import PartialForward
from lm_eval_edit.editors._shared.rows import align, fact_rows
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.memit import Memit, MemitOptions
from lm_eval_edit.edits.opened import without_weights
from lm_eval_edit.export import export
from lm_eval_edit.export.adapter import unexpressible
from lm_eval_edit.models import naming
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.models.mixture import eager_experts
from lm_eval_edit.moments.second_moments import SecondMoments
from lm_eval_edit.weights.edited import temporarily_applied
from tests.support.hybrids import HYBRIDS, REFUSED, WITH_EXPERTS, config_of, make
from tests.support.tiny import (
    FACTS,
    TEMPLATES,
    grid,
    same_weights,
    tiny_second_moments,
    tiny_tokenizer,
    weights_of,
)

ROME = {"layers": [1], "v_num_grad_steps": 5, "v_lr": 0.5, "v_weight_decay": 1e-3}
#: Editor -> its options and context templates; MEMIT's layers are a recurrent one and one with attention.
EDITS = {
    "rome": (ROME, TEMPLATES),
    "memit": (ROME | {"layers": [1, 2], "mom2_update_weight": 10.0}, [TEMPLATES[:1], TEMPLATES[1:]]),
    "ft": ({"layers": [1], "num_steps": 2}, None),
}


@torch.no_grad()
def target_log_prob(model, fact):
    tokenizer = tiny_tokenizer()
    logits = model(input_ids=torch.tensor([tokenizer.encode(fact.text)]), use_cache=False).logits[0, -1]
    return float(logits.log_softmax(-1)[tokenizer.encode(fact.target)[0]])


def aligned():
    tokenizer = tiny_tokenizer()
    return align([row for fact in FACTS for row in fact_rows(tokenizer, fact, TEMPLATES)], torch.device("cpu"))


@pytest.mark.parametrize("kind", HYBRIDS)
def test_its_mlps_are_found_and_its_state_is_seen(kind):
    model = make(kind)
    found = Architecture.discover(model)
    assert found.n_layers == 4 and found.key_size == 96
    assert len({path.split(".", 3)[-1] for path in found.down_projections}) == 1
    assert naming.is_hybrid(model)


@pytest.mark.parametrize("kind", [*HYBRIDS, *WITH_EXPERTS])
@pytest.mark.parametrize("start", [1, 3])
@torch.no_grad()
def test_a_partial_pass_over_padded_rows_equals_full_passes_over_single_ones(kind, start):
    model, rows = make(kind), aligned()
    model.set_experts_implementation("eager")  # others have no float64
    assert rows.attention_mask.min() == 0, "some rows are padded on the left"
    forward = PartialForward(model, Architecture.discover(model), rows, start)
    columns = torch.arange(rows.column, rows.input_ids.shape[1])
    got = grid(forward, columns)
    half = forward.selected(torch.tensor([1, 4]))
    torch.testing.assert_close(grid(half, columns), got[[1, 4]])
    for r in range(len(rows)):
        first = int((rows.attention_mask[r] == 0).sum())
        alone = model(input_ids=rows.input_ids[r : r + 1, first:], use_cache=False).logits[0]
        seen = int((rows.input_ids[r] != 0).nonzero().max()) - first + 1
        wanted = alone[rows.column - first : seen]
        assert (got[r, : len(wanted)] - wanted).abs().max() <= 1e-4 * wanted.abs().max(), (kind, r)


@pytest.mark.parametrize("kind", HYBRIDS)
@pytest.mark.parametrize("editor", EDITS)
def test_it_is_edited_restored_to_the_bit_exported_and_loaded_again(kind, editor, tmp_path):
    made = make(kind, torch.float32)
    made.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    kept = weights_of(model)
    options, templates = EDITS[editor]
    ledger = edit_model(
        model, tiny_tokenizer(), FACTS[:2], editor, 2 if editor == "memit" else 1, options=options,
        context_templates=templates, second_moments=tiny_second_moments(model), ledger=tmp_path / "ledger",
        progress=False,
    )  # fmt: skip
    names = {Architecture.discover(model).weight(layer) for layer in options["layers"]}
    assert {n for n, p in model.named_parameters() if not torch.equal(p, kept[n])} == names
    edited = weights_of(model)
    export(tmp_path / "ledger", "hf", tmp_path / "out", device="cpu")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert same_weights(again, edited)
    if editor != "ft":  # whose update is no low rank
        told = {why for name in names if (why := unexpressible(model, name))}
        assert not told or (kind == "qwen3_next" and len(told) == len(names))
        with (
            pytest.raises(UserError, match=r"takes .*down_proj of a .* for one of the experts")
            if told
            else nullcontext()
        ):
            export(tmp_path / "ledger", "peft", tmp_path / "peft", device="cpu")  # compares its answers
    ledger.restore()
    assert same_weights(model, kept)


@torch.no_grad()
def outputs_at_the_subjects(model, block):
    """(n, d) what a block gives at each fact's last subject token, every prompt in a pass of its own, unpadded."""
    tokenizer, found = tiny_tokenizer(), []

    def hook(module, args, output):
        found.append((output[0] if isinstance(output, tuple) else output)[0, last])

    handle = model.get_submodule(block).register_forward_hook(hook)
    for fact in FACTS:
        last = len(tokenizer.encode(fact.text[: fact.text.index(fact.subject) + len(fact.subject)])) - 1
        model(input_ids=torch.tensor([tokenizer.encode(fact.text)]), use_cache=False)
    handle.remove()
    return torch.stack(found)


@pytest.mark.parametrize("kind", [*HYBRIDS, *WITH_EXPERTS])
def test_with_no_weight_on_text_a_layer_brings_its_block_to_the_targets_in_passes_over_single_rows(kind):
    model = make(kind)
    with eager_experts(model):
        found = Architecture.discover(model)
        mixture, eye = found.routed_mixture(2), torch.eye(found.key_sizes[2], dtype=torch.float64)
        moments = {found.down_projections[2]: eye.repeat(mixture.n_experts, 1, 1) if mixture else eye}
        context = EditContext(model, tiny_tokenizer(), found, (("{}",),), SecondMoments(moments))
        options = ROME | {"layers": (2,), "clamp_norm_factor": 4.0}
        before = outputs_at_the_subjects(model, found.blocks[2])
        missed = {}
        for weight in (1e-9, 1e3):
            editor = Memit(MemitOptions(**options, mom2_update_weight=weight))
            goals, deltas = editor._goals(context, FACTS, 2), editor.compute(context, FACTS).deltas
            torch.testing.assert_close(goals.init, before, rtol=1e-5, atol=1e-5)
            with temporarily_applied(model, deltas):
                left = outputs_at_the_subjects(model, found.blocks[2]) - goals.values
            missed[weight] = left.norm(dim=1) / (before - goals.values).norm(dim=1)
    assert float(missed[1e-9].max()) < 1e-4 < 0.1 < float(missed[1e3].min())


@pytest.mark.parametrize("kind", WITH_EXPERTS)
@pytest.mark.parametrize("editor", ["rome", "memit"])
def test_experts_beside_a_recurrence_are_edited_and_restored_to_the_bit(kind, editor):
    model = make(kind, torch.float32)
    kept, found = weights_of(model), Architecture.discover(model)
    experts = {layer: found.routed_mixture(layer) for layer in (2, 3)}
    assert naming.is_hybrid(model) and all(experts.values())
    options, templates = EDITS[editor]
    eye = {found.down_projections[layer]: torch.eye(found.key_sizes[layer]).repeat(4, 1, 1) for layer in (2, 3)}
    ledger = edit_model(
        model, tiny_tokenizer(), FACTS[:2], editor, 2 if editor == "memit" else 1, context_templates=templates,
        options=options | {"layers": [2, 3] if editor == "memit" else [2]}, second_moments=eye, progress=False,
    )  # fmt: skip
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, kept[n])}
    assert changed == {found.weight(layer) for layer in ((2, 3) if editor == "memit" else (2,))}
    ledger.restore()
    assert same_weights(model, kept)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_edited_is_told_without_its_weights_as_it_is_with_them(kind):
    given, reason = REFUSED[kind]
    config = config_of(kind, given)
    torch.manual_seed(0)
    for model in (without_weights(config), AutoModelForCausalLM.from_config(config).eval()):
        with pytest.raises(UserError, match=reason):
            Architecture.discover(model)


@pytest.mark.parametrize("kind", [*HYBRIDS, *WITH_EXPERTS])
def test_what_can_be_is_found_without_weights_as_it_is_with_them(kind):
    model = make(kind)
    shapes = without_weights(model.config)
    assert Architecture.discover(shapes) == Architecture.discover(model)
    assert naming.is_hybrid(shapes), "a pass over two tokens needs no weights"


def test_rome_moves_a_hybrids_answer_towards_its_target():
    for kind in HYBRIDS:
        model = make(kind)
        before = target_log_prob(model, FACTS[0])
        edit_model(
            model, tiny_tokenizer(), FACTS[:1], "rome", options=ROME | {"v_num_grad_steps": 20, "clamp_norm_factor": 8},
            context_templates=TEMPLATES, progress=False,
        )  # fmt: skip
        assert target_log_prob(model, FACTS[0]) > before + 0.5, kind


def test_kn_which_needs_keys_and_values_says_so():
    model = make("falcon_h1")
    with pytest.raises(UserError, match="keeps a recurrent state beside keys and values"):
        edit_model(model, tiny_tokenizer(), FACTS[:1], "kn", options={"steps": 2}, progress=False)


def test_experts_beside_a_recurrence_are_found():
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    try:
        config = AutoConfig.for_model("granitemoehybrid", **HYBRIDS["granitemoehybrid"] | experts)
    except ValueError:
        pytest.skip("the installed transformers names its kinds of layers otherwise")
    found = Architecture.discover(AutoModelForCausalLM.from_config(config).eval())
    assert [(m.n_experts, m.top_k) for m in found.mixtures] == [(4, 2)] * found.n_layers
    assert all(path.endswith("shared_mlp.output_linear") for path in found.down_projections)
    assert found.routed().down_projections == tuple(mixture.down for mixture in found.mixtures)


def test_pure_recurrent_models_stay_refused():
    config = AutoConfig.for_model("mamba2", vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8,
                                  num_heads=4, head_dim=16, n_groups=1, chunk_size=4, expand=2)  # fmt: skip
    with pytest.raises(UserError, match="keeps no keys and values"):
        Architecture.discover(AutoModelForCausalLM.from_config(config).eval())
