"""Hyper-parameters that are found in the model, the notice of those nobody has published, and unlike keys."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig

from lm_eval_edit import Fact, demo, edit_model, load_facts
from lm_eval_edit.editors._shared.keys import subject_states
from lm_eval_edit.editors._shared.scale import MEMIT_CLOSED, closed_share, share_for, update_weight
from lm_eval_edit.editors.alphaedit import AlphaEdit
from lm_eval_edit.editors.base import EditContext, find_editor
from lm_eval_edit.editors.ft import Ft
from lm_eval_edit.editors.hyperparameters import presets, resolve
from lm_eval_edit.editors.memit import Memit
from lm_eval_edit.editors.rect import Rect
from lm_eval_edit.editors.rome import Rome
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from tests.support.tiny import (
    FACTS,
    NESTED_TEMPLATES,
    TEMPLATES,
    same_weights,
    tiny_model,
    tiny_second_moments,
    tiny_tokenizer,
    weights_of,
)

LAYERS = (0, 1)
QUICK = {"layers": LAYERS, "v_num_grad_steps": 4}


def context_of(model) -> EditContext:
    moments = SecondMoments(tiny_second_moments(model))
    return EditContext(model, tiny_tokenizer(), Architecture.discover(model), NESTED_TEMPLATES, moments)


def edit(model, facts, size, editor="memit", **more):
    return edit_model(
        model, tiny_tokenizer(), facts, editor, edit_batch_size=size, options=QUICK | more.pop("options", {}),
        context_templates=more.pop("context_templates", NESTED_TEMPLATES),
        second_moments=tiny_second_moments(tiny_model(torch.float64)), progress=False, **more,
    )  # fmt: skip


def used(ledger) -> list[float]:
    return [operation.record["details"]["from_model"]["mom2_update_weight"] for operation in ledger.operations]


# ----------------------------------------------------------------------------------------------------- λ from the model


@pytest.mark.parametrize("layers", [1, 2, 5, 40])
def test_the_layers_together_close_what_is_asked_for(layers):
    for closed in (0.1, 0.5, MEMIT_CLOSED, 0.99):
        share, residual = share_for(closed, layers), 1.0
        for index in range(layers):
            residual -= share * residual / (layers - index)
        assert 1 - residual == pytest.approx(closed, abs=1e-12) and 0 < share <= closed + 1e-12
    assert closed_share(0.0, layers) == 0


@pytest.mark.parametrize("closed", [0.3, 0.8])
@pytest.mark.parametrize(("layers", "ridge"), [((1,), 1.0), ((0, 1), 1.0), ((1,), 0.1)])
def test_lambda_is_that_of_the_median_key_whatever_the_order(layers, ridge, closed):
    context = context_of(tiny_model(torch.float64))
    found = update_weight(context, FACTS, layers, closed, ridge)
    keys = subject_states(context, FACTS, layers, layers[-1]).keys
    sizes = torch.cat(
        [
            (keys[at] * (torch.linalg.inv(context.second_moments[f"transformer.h.{at}.mlp.c_proj"]) @ keys[at])).sum(0)
            for at in layers
        ]
    )
    s = float(sizes.quantile(0.5)) / found
    assert s / (s + ridge) == pytest.approx(share_for(closed, len(layers)), rel=1e-8)
    assert update_weight(context, FACTS[::-1], layers, closed, ridge) == pytest.approx(found, rel=1e-12)


def test_lambda_does_not_depend_on_the_size_of_the_keys():
    """Keys and moments of another unit: λ is a count of tokens, not of units."""
    model = tiny_model(torch.float64)
    found = update_weight(context_of(model), FACTS, (0,), 0.8)
    with torch.no_grad():
        for parameter in model.transformer.h[0].mlp.c_fc.parameters():
            parameter.mul_(3)  # other keys, their moments taken anew
    assert update_weight(context_of(model), FACTS, (0,), 0.8) == pytest.approx(found, rel=0.5)
    assert (
        tiny_second_moments(model)["transformer.h.0.mlp.c_proj"].trace()
        > 3 * tiny_second_moments(tiny_model())["transformer.h.0.mlp.c_proj"].trace()
    )


@pytest.mark.parametrize(("editor", "options"), [("memit", {}), ("emmet", {"emmet_lambda": 0.1}), ("emmet", {})])
def test_the_default_is_the_edit_of_its_own_recorded_value(editor, options):
    free, told = tiny_model(), tiny_model()
    [weight] = used(edit(free, FACTS, 4, editor, options=options))
    ledger = edit(told, FACTS, 4, editor, options=options | {"mom2_update_weight": weight})
    assert same_weights(told, weights_of(free)), "bit for bit"
    assert "from_model" not in ledger.operations[0].record["details"], "an explicit number is nobody's discovery"
    assert ledger.operations[0].state == {}


def test_lambda_stays_in_the_course_of_a_run_and_a_resumed_run_ends_with_the_same_bits(tmp_path):
    whole = tiny_model()
    weights = used(edit(whole, FACTS, 1))
    assert len(weights) == 4 and len(set(weights)) == 1
    edit(tiny_model(), FACTS[:2], 1, ledger=tmp_path / "ledger")
    resumed = tiny_model()
    ledger = edit(resumed, FACTS, 1, ledger=tmp_path / "ledger")
    assert used(ledger) == weights and same_weights(resumed, weights_of(whole))
    assert (
        json.loads((tmp_path / "ledger" / "ledger.json").read_text())["identity"]["options"]["mom2_update_weight"]
        is None
    )
    assert used(edit(tiny_model(), FACTS[::-1], 1)) != weights, "it is the first operation's"


def test_alphaedits_threshold_and_weight_come_from_the_moments_and_the_keys(demo_model):
    model, tokenizer = demo_model
    [preset] = [p.options for p in presets("alphaedit") if p.name == "demo"]
    given = preset | {"nullspace_threshold": "auto", "L2": "auto"}
    ledger = edit_model(
        model, tokenizer, list(load_facts("demo"))[:8], "alphaedit", 4, options=given,
        second_moments=demo.SECOND_MOMENTS, min_success=0.8, progress=False,
    )  # fmt: skip
    first, second = (operation.record["details"] for operation in ledger.operations)
    eigenvalues = torch.linalg.eigvalsh(SecondMoments.load(demo.SECOND_MOMENTS)["transformer.h.0.mlp.c_proj"].double())
    assert first["from_model"] == second["from_model"] and first["null_space"] == {"0": 256}
    assert first["from_model"]["nullspace_threshold"] == pytest.approx(float(eigenvalues.quantile(0.5)))
    assert 0.6 < first["closed"] < 0.9, "0.79 for the median key alone"
    ledger.restore()


def test_what_another_editor_wraps_finds_its_lambda_too():
    assert len(set(used(edit(tiny_model(), FACTS, 2, "rect", options={"over": "memit"})))) == 1


def test_the_demo_world_is_edited_by_the_default_as_by_its_preset(demo_model):
    model, tokenizer = demo_model
    facts = list(load_facts("demo"))[:8]
    [preset] = [p.options for p in presets("memit") if p.name == "demo"]
    moments = demo.SECOND_MOMENTS
    ledger = edit_model(
        model, tokenizer, facts, "memit", 8, options=preset | {"mom2_update_weight": "auto"}, second_moments=moments,
        min_success=0.8, progress=False,
    )  # fmt: skip
    assert 0.6 < ledger.guards["residual_closed"] < 0.9
    ledger.restore()


@pytest.mark.parametrize("editor", ["memit", "memit_seq", "encore", "emmet", "alphaedit", "betaedit"])
def test_the_demo_world_is_edited_in_two_layers_by_the_option_alone(editor, demo_model):
    """Its second moments are of both; with the preset of one layer the option was refused."""
    model, tokenizer = demo_model
    ledger = edit_model(
        model, tokenizer, list(load_facts("demo"))[:8], editor, 8, options={"own_targets": True},
        second_moments=demo.SECOND_MOMENTS, min_success=1.0, progress=False,
    )  # fmt: skip
    (operation,) = ledger.operations
    assert len(operation.deltas) == 2 and len(operation.record["details"]["by_layer"]) == 2
    ledger.restore()


@pytest.fixture
def demo_model():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(demo.CHECKPOINT).eval(), AutoTokenizer.from_pretrained(demo.CHECKPOINT)


# ------------------------------------------------------------------------------------------ who decides, and the notice

GPT2_XL = AutoConfig.for_model("gpt2", n_embd=1600, n_layer=48, n_head=25)


def test_published_presets_and_numbers_given_win():
    found, _ = resolve(Memit, GPT2_XL, {})
    assert found.editor.options.mom2_update_weight == 20000 and found.preset == "gpt2-xl" and not found.notices
    for given, wanted in ((7, 7.0), ("1e3", 1000.0), ("auto", None), ("none", None), (None, None)):
        assert resolve(Memit, GPT2_XL, {"mom2_update_weight": given})[0].editor.options.mom2_update_weight == wanted
    _, problems = resolve(Memit, GPT2_XL, {"mom2_update_weight": "much"})
    assert len(problems) == 1 and "mom2_update_weight='much': want a number, or auto" in problems[0]
    _, problems = resolve(Memit, GPT2_XL, {"mom2_update_weight": 0})
    assert problems == ["mom2_update_weight=0: want a positive number"]


@pytest.mark.parametrize(
    ("editor", "named"),
    [
        (Memit, ("layer(s) 1 ", "mom2_update_weight from the model itself", "v_lr 0.5", "clamp_norm_factor 0.75")),
        (AlphaEdit, ("layer(s) 1 ", "nullspace_threshold", "L2", "kl_factor 0.0625")),
        (Rome, ("layer(s) 1 ", "v_lr 0.5", "v_weight_decay 0.5", "v_num_grad_steps 20")),
        (Ft, ("layer(s) 2 ", "num_steps 25", "lr 0.0005")),
        (find_editor("lora"), ("num_steps", "lr", "rank 8")),
        (find_editor("kn"), ("steps 20", "adaptive_threshold 0.2")),
    ],
)
def test_the_notice_names_all_that_nobody_has_published(editor, named):
    found, problems = resolve(editor, tiny_model().config, {})
    assert not problems and len(found.notices) == 1
    assert all(each in found.notices[0] for each in named), found.notices
    assert "v_batch_size" not in found.notices[0], "it changes no figure"


def test_the_notice_leaves_out_what_was_given():
    [notice] = resolve(Memit, tiny_model().config, {"layers": [1], "mom2_update_weight": 9, "v_lr": 0.1})[0].notices
    assert not any(word in notice for word in ("layer(s)", "mom2_update_weight", "v_lr")) and "kl_factor" in notice
    [notice] = resolve(Rect, tiny_model().config, {"over": "memit"})[0].notices
    assert "mom2_update_weight from the model" in notice, "of the editor it works on"


# --------------------------------------------------------------------------------------------------------- unlike keys


class Unlike(Rome):
    """ROME that meets a bare key at right angles, nearly, to its mean key."""

    name = "unlike"

    def _targets(self, context, fact, layer):
        targets = super()._targets(context, fact, layer)
        keys = targets.keys.clone()
        mean = keys[0, 1:].mean(dim=0)
        other = torch.roll(mean, 1)
        keys[0, 0] = 0.1 * (other - (other @ mean) / (mean @ mean) * mean)
        return replace(targets, keys=keys)


def test_rome_warns_of_a_key_unlike_its_context_keys_before_the_edit_is_applied(caplog):
    model = tiny_model()
    kept = weights_of(model)
    editor = Unlike(Unlike.Options(layers=(1,), v_num_grad_steps=3))
    context = EditContext(model, tiny_tokenizer(), Architecture.discover(model), TEMPLATES, SecondMoments())
    with caplog.at_level(logging.WARNING):
        result = editor.compute(context, FACTS[:1])
    assert same_weights(model, kept), "told while the update is computed"
    assert f"fact {FACTS[0].id}: the key of its bare prompt {FACTS[0].text!r}" in caplog.text
    [cosine] = result.details["key_cosine"]
    assert f"cosine {cosine:.2f}" in caplog.text and "editor=r_rome" in caplog.text


@pytest.mark.parametrize("editor", ["rome", "r_rome"])
def test_no_warning_for_ordinary_facts_of_the_demo_and_none_from_r_rome(editor, demo_model, caplog):
    model, tokenizer = demo_model
    facts = [*list(load_facts("demo"))[::100][:3], Fact("Rome", "{} is in the country of", "France", id="short")]
    with caplog.at_level(logging.WARNING):
        ledger = edit_model(
            model, tokenizer, facts, editor, options={"v_num_grad_steps": 2, "v_lr": 0.1},
            second_moments=demo.SECOND_MOMENTS, progress=False,
        )  # fmt: skip
    assert "unlike" not in caplog.text
    cosines = [operation.record["details"]["key_cosine"][0] for operation in ledger.operations]
    assert all(0.7 < cosine < 1 for cosine in cosines) if editor == "rome" else cosines == pytest.approx([1.0] * 4)
