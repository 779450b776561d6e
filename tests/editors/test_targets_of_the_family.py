"""Options of the whole MEMIT family: a target for each layer of its own (BLUE), targets of one norm (NAS)."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from lm_eval_edit import UserError, edit_model
from lm_eval_edit.editors._shared.anchors import anchor_name, mean_norm
from lm_eval_edit.editors._shared.keys import subject_states
from lm_eval_edit.editors.base import EditContext, find_editor
from lm_eval_edit.editors.hyperparameters import resolve
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from lm_eval_edit.weights.edited import temporarily_applied
from tests.support.tiny import (
    FACTS,
    LEARNABLE,
    NESTED_TEMPLATES,
    same_weights,
    tiny_model,
    tiny_second_moments,
    tiny_tokenizer,
    weights_of,
)

SHARED = {"layers": (0, 1), "v_num_grad_steps": 8, "v_lr": 0.5, "v_weight_decay": 1e-3, "clamp_norm_factor": 4.0}
OWN = {
    "memit": {"mom2_update_weight": 1e-9},
    "memit_seq": {"mom2_update_weight": 1e-9},
    "alphaedit": {"nullspace_threshold": 1e9, "L2": 1e-9},
}  # hardly any weight on text: what is asked for is done


@pytest.fixture(scope="module")
def moments() -> dict[str, torch.Tensor]:
    return tiny_second_moments(tiny_model(torch.float64))


def context_of(model, moments, schedule=(), templates=NESTED_TEMPLATES) -> EditContext:
    architecture = Architecture.discover(model)
    return EditContext(model, tiny_tokenizer(), architecture, templates, SecondMoments(moments), schedule=schedule)


def editor_of(name, **extra):
    kind = find_editor(name)
    return kind(kind.Options(**SHARED | OWN[name] | extra))


def edit(model, moments, facts=FACTS, size=2, editor="memit", ledger=None, **extra):
    return edit_model(
        model, tiny_tokenizer(), facts, editor, size, options=SHARED | {"mom2_update_weight": 0.1} | extra,
        context_templates=NESTED_TEMPLATES, second_moments=moments, ledger=ledger, progress=False,
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------- BLUE


@pytest.mark.parametrize("name", OWN)
def test_each_layer_closes_its_own_residual_alone_and_shared_ones_do_not(moments, name, monkeypatch):
    """With bare prompts and no weight on text, a layer given its whole residual brings its own block to the target."""
    model = tiny_model(torch.float64)
    context = context_of(model, moments, templates=(("{}",),))
    editor = editor_of(name, own_targets=True)
    asked, goals_of = [], type(editor)._goals

    def kept(self, context, facts, layer, *rest):
        asked.append((layer, goals_of(self, context, facts, layer, *rest)))
        return asked[-1][1]

    monkeypatch.setattr(type(editor), "_goals", kept)
    result = editor.compute(context, FACTS)
    assert [layer for layer, _ in asked] == [0, 1]
    applied = {}
    for layer, goals in asked:
        with temporarily_applied(model, applied):
            before = subject_states(context, FACTS, [], layer).outputs
            torch.testing.assert_close(before, goals.init, rtol=1e-9, atol=1e-9)  # on the weights edited so far
        weight = context.architecture.weight(layer)
        applied[weight] = result.deltas[weight]
        with temporarily_applied(model, applied):
            after = subject_states(context, FACTS, [], layer).outputs
        missed = (after - goals.values).norm(dim=1) / (before - goals.values).norm(dim=1)
        assert float(missed.max()) < 1e-4, (name, layer)
    assert [round(each["closed"], 3) for each in result.details["by_layer"].values()] == [1.0, 1.0]

    shared = editor_of(name)
    first = shared.compute(context, FACTS).deltas[context.architecture.weight(0)]
    target = shared._goals(context, FACTS, 1).values
    was = (subject_states(context, FACTS, [], 1).outputs - target).norm(dim=1)
    with temporarily_applied(model, {context.architecture.weight(0): first}):
        now = (subject_states(context, FACTS, [], 1).outputs - target).norm(dim=1)
    assert float((now / was).min()) > 0.1, "MEMIT's first layer closes a part"


def test_only_the_first_and_the_last_layer_are_edited(moments):
    editor = find_editor("memit")(find_editor("memit").Options(layers=(3, 4, 5, 8), own_targets=True))
    assert editor.layers() == editor.needs_second_moments() == [3, 8]
    ledger = edit(tiny_model(torch.float64), moments, LEARNABLE, own_targets=True)
    assert len(ledger.operations[0].deltas) == 2
    details = ledger.operations[0].record["details"]
    assert [len(details["by_layer"][layer]["loss"]) for layer in ("0", "1")] == [2, 2]
    assert details["closed"] == sum(each["closed"] for each in details["by_layer"].values()) / 2
    assert all(delta.rank == 2 for delta in ledger.operations[0].deltas.values())


@pytest.mark.parametrize(
    ("editor", "config", "given", "wanted"),
    [
        ("alphaedit", GPT2Config(n_embd=1600, n_layer=48), {"own_targets": True}, ((13, 17), "L2", 80)),
        ("alphaedit", GPT2Config(n_embd=1600, n_layer=48), {"own_targets": "true"}, ((13, 17), "L2", 80)),
        ("alphaedit", GPT2Config(n_embd=1600, n_layer=48), {}, ((13, 14, 15, 16, 17), "L2", 10)),
        ("memit", GPT2Config(n_embd=1600, n_layer=48), {"own_targets": True},
         ((13, 14, 15, 16, 17), "mom2_update_weight", 20000)),
        ("memit", LlamaConfig(hidden_size=4096, num_hidden_layers=32, intermediate_size=14336), {"own_targets": True},
         ((4, 8), "mom2_update_weight", 15000)),
    ],
)  # fmt: skip
def test_the_presets_of_the_variant_are_chosen_by_the_option(editor, config, given, wanted):
    found, problems = resolve(find_editor(editor), config, given)
    assert not problems
    layers, name, value = wanted
    assert (found.editor.options.layers, getattr(found.editor.options, name)) == (layers, value)
    assert not given or found.editor.layers() == [layers[0], layers[-1]]


# ------------------------------------------------------------------------------------------------------------------ NAS


@pytest.mark.parametrize("name", OWN)
def test_the_targets_have_the_anchors_norm_after_and_not_before(moments, name):
    context = context_of(tiny_model(torch.float64), moments)
    plain = editor_of(name)._goals(context, FACTS, 1)
    anchor = float(plain.wished.norm(dim=1).max())
    goals = editor_of(name, norm_anchor=anchor)._goals(context, FACTS, 1)
    torch.testing.assert_close(goals.wished.norm(dim=1), torch.full((4,), anchor, dtype=torch.float64))
    assert float((plain.wished.norm(dim=1) - anchor).abs().max()) > 0.1
    cosine = torch.nn.functional.cosine_similarity(goals.wished, plain.wished)
    torch.testing.assert_close(cosine, torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(goals.values - goals.init, goals.wished - plain.mlp)
    assert goals.details["norms_before"] == pytest.approx(plain.wished.norm(dim=1).tolist())
    assert bool(goals.edited.all()) and goals.details["left_out"] == []


def test_v0_is_the_mlps_own_output(moments):
    model = tiny_model(torch.float64)
    context = context_of(model, moments)
    goals, seen = editor_of("memit")._goals(context, FACTS[:1], 1), {}
    hook = model.transformer.h[1].mlp.register_forward_hook(lambda m, args, out: seen.update(out=out))
    subject_states(context, FACTS[:1], [], 1)
    hook.remove()
    distances = (seen["out"][0] - goals.mlp[0]).norm(dim=1)  # at some token of the bare prompt, the subject's last
    assert float(distances.min()) < 1e-9


def test_a_fact_above_twice_the_anchor_is_left_out_and_listed(moments, caplog):
    model = tiny_model(torch.float64)
    context = context_of(model, moments)
    norms = editor_of("memit")._goals(context, FACTS, 1).wished.norm(dim=1)
    order = norms.argsort()
    anchor = float((norms[order[2]] + norms[order[3]]) / 4)  # the longest lies above twice that
    longest = int(order[3])
    editor = editor_of("memit", norm_anchor=anchor)
    with caplog.at_level(logging.WARNING):
        goals = editor._goals(context, FACTS, 1)
    assert goals.edited.tolist() == [index != longest for index in range(4)]
    assert goals.details["left_out"] == [FACTS[longest].id]
    assert "left out, the target's norm is above twice the anchor" in caplog.text
    assert torch.equal(goals.values[longest], goals.init[longest])
    alone = editor.compute(context, [FACTS[longest]])
    assert all(float(delta.norm()) == 0.0 for delta in alone.deltas.values()), "no edit at all"


def test_the_anchor_is_measured_once_on_the_unedited_model_and_kept(moments, tmp_path):
    model = tiny_model(torch.float64)
    wanted = mean_norm(editor_of("memit")._goals(context_of(model, moments), FACTS[:3], 1).wished)
    ledger = edit(model, moments, size=1, ledger=tmp_path / "ledger", norm_anchor="auto", norm_anchor_facts=3)
    for operation in ledger.operations:
        assert operation.record["details"]["norm_anchor"] == pytest.approx(wanted, rel=1e-9)
    first = ledger.operations[0].record["details"]
    assert first["from_model"] == {anchor_name(1): pytest.approx(wanted, rel=1e-9)}
    assert [anchor_name(1) in " ".join(o.state) for o in ledger.operations] == [True, False, False, False]

    record = [{"prompt": f.template, "subject": f.subject, "target_new": f.target} for f in FACTS[:3]]
    (tmp_path / "facts.json").write_text(json.dumps(record))
    other = edit(
        tiny_model(torch.float64), moments, FACTS[3:], norm_anchor=str(tmp_path / "facts.json"), norm_anchor_facts=3
    )
    assert other.operations[0].record["details"]["norm_anchor"] == pytest.approx(wanted, rel=1e-6)


def test_a_run_of_fewer_facts_is_the_beginning_of_a_longer_one(moments):
    options = {"editor": "memit_seq", "size": 1, "norm_anchor": "auto", "norm_anchor_facts": 2}
    short, long = tiny_model(), tiny_model()
    edit(short, moments, FACTS[:3], **options)
    ledger = edit(long, moments, **options)
    ledger.apply(3)
    assert same_weights(long, weights_of(short))


def test_both_together_measure_an_anchor_for_each_layer(moments):
    ledger = edit(tiny_model(), moments, norm_anchor="auto", norm_anchor_facts=4, own_targets=True)
    assert set(ledger.operations[0].record["details"]["from_model"]) == {anchor_name(0), anchor_name(1)}
    later = ledger.operations[1].record["details"]["by_layer"]
    assert 0 < later["0"]["norm_anchor"] != later["1"]["norm_anchor"] > 0


def test_an_anchor_over_more_facts_than_there_are_is_refused_before_anything_is_computed(moments):
    with pytest.raises(UserError, match=r"mean over 9 facts, and the run edits 4\. Give norm_anchor_facts=4"):
        edit(tiny_model(), moments, norm_anchor="auto", norm_anchor_facts=9)


@pytest.mark.parametrize("given", [0, -1, "nan", True, "", float("inf")])
def test_a_wrong_anchor(moments, given):
    with pytest.raises(UserError, match=r"norm_anchor=.*want a positive number, auto, or a file of facts"):
        edit(tiny_model(), moments, norm_anchor=given)
