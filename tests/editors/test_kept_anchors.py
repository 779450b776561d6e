"""NAS's anchor is measured once: who asks for the same again reads it, whoever asks for another measures anew."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lm_eval_edit import ConfigurationError, Fact, UserError, edit_model
from lm_eval_edit.editors._shared import anchors as module
from lm_eval_edit.editors._shared.anchors import anchor_name, anchors
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.memit import MemitOptions
from lm_eval_edit.facts.chat import ChatFrame, placed
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from tests.support.tiny import (
    FACTS,
    NESTED_TEMPLATES,
    same_weights,
    tiny_llama,
    tiny_model,
    tiny_second_moments,
    tiny_tokenizer,
    weights_of,
    write_facts,
)

OPTIONS = {
    "layers": (0, 1), "v_num_grad_steps": 4, "v_weight_decay": 1e-3, "norm_anchor": "auto", "norm_anchor_facts": 3,
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LM_EVAL_EDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "norm_anchors"


@pytest.fixture
def measured(monkeypatch) -> list[int]:
    """The layers whose anchors were measured, one after another."""
    layers, find = [], module.find_goals

    def counted(context, facts, layer, options):
        layers.append(layer)
        return find(context, facts, layer, options)

    monkeypatch.setattr(module, "find_goals", counted)
    return layers


def context_of(model=None, templates=NESTED_TEMPLATES, schedule=FACTS, tokenizer=None, chat=None) -> EditContext:
    model = model or tiny_model(torch.float64)
    return EditContext(
        model, tokenizer or tiny_tokenizer(), Architecture.discover(model), templates, SecondMoments(),
        schedule=placed(schedule, chat), chat=chat,
    )  # fmt: skip


def found(context=None, layers=(1,), **changed):
    return anchors(context or context_of(), FACTS, layers, MemitOptions(**OPTIONS | changed))


def edit(editor="memit", facts=FACTS, ledger=None, model=None, **changed):
    model = model or tiny_model()
    return edit_model(
        model, tiny_tokenizer(), facts, editor, 2, options=OPTIONS | changed, context_templates=NESTED_TEMPLATES,
        second_moments=tiny_second_moments(tiny_model()), ledger=ledger, progress=False,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- read again


def test_the_same_again_is_read_to_the_last_bit_and_both_say_so(measured, cache):
    (first, origin), (second, then) = found(), found()
    assert measured == [1] and first == second and first[anchor_name(1)] > 0
    (file,) = cache.glob("*.json")
    assert origin == {anchor_name(1): f"measured on 3 facts, kept in {file}"}
    assert then == {anchor_name(1): f"read from {file}"}
    file.unlink()
    assert found()[0] == first and measured == [1, 1]


@pytest.mark.parametrize("editor", ["memit", "memit_seq", "encore", "emmet", "sphere"])
def test_a_second_run_reads_it_and_has_the_same_bits(editor, measured, cache, tmp_path):
    changed = {"over": "memit"} if editor == "sphere" else {}
    one, two = tiny_model(), tiny_model()
    first = edit(editor, model=one, ledger=tmp_path / "one", **changed)
    assert measured == [1]
    second = edit(editor, model=two, ledger=tmp_path / "two", **changed)
    assert measured == [1] and same_weights(two, weights_of(one))
    told = [ledger.operations[0].record["details"]["norm_anchor_from"][anchor_name(1)] for ledger in (first, second)]
    (file,) = cache.glob("*.json")
    assert told == [f"measured on 3 facts, kept in {file}", f"read from {file}"]
    assert "norm_anchor_from" not in first.operations[1].record["details"], "later operations take it from the first"


def test_methods_that_want_the_same_goals_share_it_and_each_layer_has_its_own(measured):
    edit("memit")
    edit("memit_seq")
    assert measured == [1]
    edit("memit", own_targets=True)
    assert measured == [1, 0]


def test_a_file_of_the_same_facts_is_the_same_anchor(measured, tmp_path):
    auto, _ = found()
    named, _ = found(norm_anchor=str(write_facts(tmp_path / "facts.jsonl")))
    assert named == auto and measured == [1]


def test_facts_of_a_file_that_the_method_cannot_edit_are_passed_over(measured, tmp_path):
    nameless = [Fact("", "the city of Prague is", "Berlin", id=f"n{i}") for i in range(2)]
    long = replace(FACTS[0], id="long", target_new="Prague " * 200)
    mixed = write_facts(tmp_path / "mixed.jsonl", [nameless[0], FACTS[0], long, FACTS[1], nameless[1], FACTS[2]])
    first = edit("memit", norm_anchor=str(mixed)).operations[0].record["details"]["from_model"]
    second = edit("memit", norm_anchor="auto").operations[0].record["details"]["from_model"]
    assert first == second and measured == [1]
    with pytest.raises(ConfigurationError, match=r"mean over 4 facts, and .*mixed.jsonl has 3"):
        edit("memit", norm_anchor=str(mixed), norm_anchor_facts=4)


def test_what_the_goals_do_not_depend_on_measures_nothing_anew(measured):
    found()
    renamed = [replace(fact, id=f"{fact.id} again", target_true=None) for fact in FACTS]
    found(context_of(schedule=renamed))
    found(context_of(schedule=FACTS[:3]))
    found(layers=(1,), mom2_update_weight=7.0)
    assert measured == [1]


# ------------------------------------------------------------------------------------------------------ measured anew


def edited() -> torch.nn.Module:
    model = tiny_model(torch.float64)
    with torch.no_grad():
        model.lm_head.weight[3, 4] += 1e-12
    return model


def otherwise_scaled() -> torch.nn.Module:
    model = tiny_model(torch.float64)
    model.config.layer_norm_epsilon = 1e-2
    return model


FRAME = ChatFrame("I ", " .", "", "a template")


@pytest.mark.parametrize(
    "changed",
    [
        {"context": lambda: context_of(edited())},
        {"context": lambda: context_of(tiny_model(torch.float32))},
        {"context": lambda: context_of(tiny_llama(torch.float64))},
        {"context": lambda: context_of(otherwise_scaled())},
        {"context": lambda: context_of(templates=(("{}",),))},
        {"context": lambda: context_of(schedule=FACTS[1:])},
        {"context": lambda: context_of(schedule=[replace(FACTS[0], target_new="Czech"), *FACTS[1:]])},
        {"context": lambda: context_of(tokenizer=tiny_tokenizer(bos=True))},
        {"context": lambda: context_of(chat=FRAME)},
        {"layers": (0,)},
        {"norm_anchor_facts": 2},
        {"v_num_grad_steps": 5},
        {"v_lr": 0.4},
        {"v_weight_decay": 0.1},
        {"clamp_norm_factor": 0.5},
        {"kl_factor": 0.0},
        {"stop_after_correct": 0},
        {"v_batch_size": 1},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_whatever_changes_the_goals_measures_anew(changed, measured, cache):
    found()
    changed = dict(changed)
    context = changed.pop("context", context_of)
    found(context(), **changed)
    assert len(measured) == 2 and len(list(cache.glob("*.json"))) == 2
    found()
    assert len(measured) == 2, "and the first is still there"


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "3.5", '{"norm_anchor": 3.5}',
        *('"norm_anchor": ' + value for value in ("NaN", "Infinity", "-1.0", "0.0", '"3.5"', "null", "true", "[3.5]")),
        '"identity": {}', '"layer": 0', '"weights": "another"',
    ],
)  # fmt: skip
def test_no_file_is_believed_that_does_not_hold_this_anchor(content, measured, cache, caplog):
    wanted, _ = found()
    (file,) = cache.glob("*.json")
    if content.startswith('"'):
        held, change = json.loads(file.read_text()), json.loads("{" + content + "}")
        inner = {name: value for name, value in change.items() if name in held["identity"]}
        held |= {name: value for name, value in change.items() if name not in inner}
        held["identity"] |= inner
        file.write_text(json.dumps(held))
    else:
        file.write_text(content)
    with caplog.at_level(logging.WARNING):
        again, origin = found()
    assert again == wanted and measured == [1, 1]
    assert str(file) in caplog.text and "the anchor is measured again" in caplog.text
    assert origin[anchor_name(1)].startswith("measured")
    assert found()[0] == wanted and measured == [1, 1], "written anew"


def test_where_nothing_can_be_kept_it_is_measured_and_said(measured, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LM_EVAL_EDIT_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        _, origin = found()
    assert origin == {anchor_name(1): "measured on 3 facts"} and measured == [1]
    assert "the anchor of layer 1 is measured again by the next run" in caplog.text


def test_a_mean_that_is_no_number_is_an_error_and_not_kept(cache):
    model = tiny_model(torch.float64)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="the mean norm of the targets of layer 1 over 3 facts is nan"):
        found(context_of(model))
    assert not list(cache.glob("*.json"))


# ------------------------------------------------------------------------------------------- resumed, and two at once


def test_a_run_that_goes_on_has_it_from_its_ledger_whatever_lies_in_the_cache(measured, cache, tmp_path):
    whole, resumed = tiny_model(), tiny_model()
    edit("memit_seq", model=whole)
    edit("memit_seq", FACTS[:3], tmp_path / "ledger", norm_anchor_facts=3)
    for file in cache.glob("*.json"):
        file.write_text("{}")
    edit("memit_seq", FACTS[:3], tmp_path / "ledger", resumed).edit(FACTS[3:])
    wanted = tiny_model()
    edit("memit_seq", FACTS[:3], model=wanted).edit(FACTS[3:])
    assert same_weights(resumed, weights_of(wanted))


def test_who_measures_the_same_at_the_same_time_is_waited_for(measured, cache, tmp_path, caplog):
    wanted, _ = found()
    (file,) = cache.glob("*.json")
    content = file.read_text()
    file.unlink()
    holds = (
        "import sys, time; from pathlib import Path; from lm_eval_edit._support.locks import in_turn\n"
        "file = Path(sys.argv[1])\n"
        "with in_turn(file, 'it'):\n"
        "    print('held', flush=True); time.sleep(2); file.write_text(sys.argv[2])\n"
    )
    with subprocess.Popen([sys.executable, "-c", holds, file, content], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with caplog.at_level(logging.WARNING):
            value, origin = found()
    assert value == wanted and measured == [1] and origin == {anchor_name(1): f"read from {file}"}
    assert "another process is making" in caplog.text


def test_a_number_that_is_given_is_neither_measured_nor_kept(measured, cache):
    assert found(norm_anchor=40.0, norm_anchor_facts=50) == ({}, {})
    ledger = edit(norm_anchor=40.0, norm_anchor_facts=50)
    assert "norm_anchor_from" not in ledger.operations[0].record["details"]
    assert measured == [] and not cache.exists()
