"""Edits that arrive over time: a run goes on with its state, in one process or through a folder, or says that not."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch

from lm_eval_edit import ConfigurationError, Fact, UserError, edit_model
from lm_eval_edit.editors.memit_seq import MemitSeq
from lm_eval_edit.weights.carried import carried_by
from tests.support.tiny import (
    FACTS,
    NESTED_TEMPLATES,
    same_weights,
    tiny_llama,
    tiny_model,
    tiny_second_moments,
    tiny_tokenizer,
    weights_of,
)

SHARED = {"layers": (0, 1), "v_num_grad_steps": 6, "v_weight_decay": 1e-3, "clamp_norm_factor": 4.0}
OPTIONS = {
    "alphaedit": SHARED | {"nullspace_threshold": 0.3, "L2": 1e-3},
    "memit_seq": SHARED | {"norm_anchor": "auto", "norm_anchor_facts": 2},
    "memit": SHARED,
    "encore": SHARED,
    "betaedit": SHARED | {"nullspace_threshold": 0.3, "L2": 1e-3, "mom2_update_weight": 0.1, "refresh_every": 2},
    "sphere": SHARED | {"over": "memit_seq", "mom2_update_weight": 0.1},
    "ultraedit": {"layers": (0, 1)},
    "ft": {"layers": (1,), "num_steps": 4, "append_eos": True, "shuffle": True},
}
#: What a later operation cannot do without: with it forgotten the weights are others.
WITH_STATE = sorted(set(OPTIONS) - {"memit", "ft"})


@pytest.fixture(scope="module")
def moments():
    return tiny_second_moments(tiny_model(torch.float64))


def edit(model, moments, facts, editor="alphaedit", size=1, ledger=None):
    needed = {} if editor in ("ultraedit", "ft") else {"context_templates": NESTED_TEMPLATES, "second_moments": moments}
    return edit_model(
        model, tiny_tokenizer(), facts, editor, size, options=OPTIONS[editor], ledger=ledger, progress=False, **needed
    )


@pytest.mark.parametrize("editor", OPTIONS)
@pytest.mark.parametrize("way", ["ledger.edit", "edited model", "fresh model"])
def test_a_run_goes_on_with_its_state(tmp_path, moments, editor, way, caplog):
    whole = tiny_model()
    edit(whole, moments, FACTS, editor)
    model = tiny_model()
    unedited = weights_of(model)
    first = edit(model, moments, FACTS[:2], editor, ledger=tmp_path / "ledger")
    with caplog.at_level(logging.WARNING):
        if way == "ledger.edit":
            ledger = first
            ledger.edit(FACTS[2:])
        else:
            model = model if way == "edited model" else tiny_model()
            ledger = edit(model, moments, FACTS, editor, ledger=tmp_path / "ledger")
    assert "carries edits already" not in caplog.text
    assert len(ledger.operations) == ledger.applied == 4
    assert same_weights(model, weights_of(whole))
    ledger.restore()
    assert same_weights(model, unedited) and carried_by(model) == []


def test_in_memory_a_ledger_goes_on_too(moments):
    whole, model = tiny_model(), tiny_model()
    edit(whole, moments, FACTS)
    ledger = edit(model, moments, FACTS[:1])
    ledger.edit(FACTS[1:2])
    ledger.restore()
    ledger.edit(FACTS[2:])
    assert same_weights(model, weights_of(whole))


@pytest.mark.parametrize("editor", WITH_STATE)
def test_a_second_run_on_an_edited_model_starts_anew_and_says_so(moments, editor, caplog, tmp_path):
    whole, model = tiny_model(), tiny_model()
    edit(whole, moments, FACTS, editor)
    first = edit(model, moments, FACTS[:2], editor)
    with caplog.at_level(logging.WARNING):
        second = edit(model, moments, FACTS[2:], editor, ledger=tmp_path / "another")
    assert f"the model carries edits already (2 by {editor}): this run starts anew" in caplog.text
    assert not same_weights(model, weights_of(whole)), "the keys of the first two were not known"
    second.restore()
    first.restore()
    assert same_weights(model, weights_of(tiny_model()))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        edit(model, moments, FACTS[:2], editor)
    assert "carries edits already" not in caplog.text


CHANGED = {
    "alphaedit": {"L2": 1e-2}, "memit_seq": {"lambda_prev": 0.5}, "encore": {"stop_after_correct": 1},
    "betaedit": {"refresh_every": 3}, "sphere": {"suppression_strength": 0.4}, "ultraedit": {"batch_size_once": 1},
    "ft": {"shuffle": False}, "memit": {"own_targets": True},
}  # fmt: skip


@pytest.mark.parametrize("editor", OPTIONS)
def test_with_other_options_it_is_another_run(editor, tmp_path, moments, monkeypatch):
    model = tiny_model()
    ledger = edit(model, moments, FACTS[:2], editor, ledger=tmp_path / "ledger")
    kept = weights_of(model)
    (name,) = CHANGED[editor]
    monkeypatch.setitem(OPTIONS, editor, OPTIONS[editor] | CHANGED[editor])
    with pytest.raises(UserError, match=rf"(?s)belongs to another run.*{name}.*Give the options it was made with"):
        edit(model, moments, FACTS, editor, ledger=tmp_path / "ledger")
    assert same_weights(model, kept) and ledger.applied == 2


@pytest.mark.parametrize("other", [lambda: tiny_model(seed=1), lambda: tiny_model(torch.float64), tiny_llama])
def test_on_other_weights_it_is_another_run(other, tmp_path, moments):
    edit(tiny_model(), moments, FACTS[:2], "ultraedit", ledger=tmp_path / "ledger")
    model = other()
    kept = weights_of(model)
    with pytest.raises(UserError, match=r"(?s)belongs to another run.*model"):
        edit(model, moments, FACTS, "ultraedit", ledger=tmp_path / "ledger")
    assert same_weights(model, kept) and carried_by(model) == []


def test_a_run_whose_ledger_nobody_kept_is_still_known(moments, tmp_path, caplog):
    model, whole = tiny_model(), tiny_model()
    edit(whole, moments, FACTS)
    edit(model, moments, FACTS[:2], ledger=tmp_path / "ledger")
    edit(model, moments, FACTS, ledger=tmp_path / "ledger")
    assert same_weights(model, weights_of(whole))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_an_edited_model_carries_edits_that_nobody_can_take_off(moments, caplog, copied):
    model = tiny_model()
    edit(model, moments, FACTS[:1])
    other = copied(model)
    assert carried_by(other) == [None]
    with caplog.at_level(logging.WARNING):
        edit(other, moments, FACTS[1:2])
    assert "carries edits already (those of the model it is a copy of)" in caplog.text
    assert carried_by(copy.deepcopy(tiny_model())) == []


def test_batches_go_on_behind_one_that_was_not_full(moments, tmp_path):
    model = tiny_model()
    ledger = edit(model, moments, FACTS[:1], size=2, ledger=tmp_path / "ledger")
    ledger.edit(FACTS[1:])
    assert [len(operation.facts) for operation in ledger.operations] == [1, 2, 1]
    fresh = tiny_model()
    again = edit(fresh, moments, FACTS, size=2, ledger=tmp_path / "ledger")
    assert [len(operation.facts) for operation in again.operations] == [1, 2, 1]
    assert same_weights(fresh, weights_of(model))


def test_wrong_facts_change_nothing(moments):
    model = tiny_model()
    ledger = edit(model, moments, FACTS[:2])
    kept = weights_of(model)
    with pytest.raises(ConfigurationError, match="wrong"):
        ledger.edit([Fact("Nobody", "The capital of {}", "", id="wrong"), FACTS[2]])
    assert same_weights(model, kept) and len(ledger.operations) == 2
    ledger.edit_more = None
    with pytest.raises(UserError, match="belongs to no run"):
        ledger.edit(FACTS[2:])


def test_a_failed_continuation_can_be_tried_again(moments, monkeypatch):
    whole, model = tiny_model(), tiny_model()
    edit(whole, moments, FACTS, "memit_seq")
    ledger = edit(model, moments, FACTS[:2], "memit_seq")
    compute = MemitSeq.compute

    def fails(self, context, facts, history=()):
        if facts == [FACTS[3]]:
            raise UserError("no")
        return compute(self, context, facts, history)

    monkeypatch.setattr(MemitSeq, "compute", fails)
    with pytest.raises(UserError, match="no"):
        ledger.edit(FACTS[2:])
    assert same_weights(model, weights_of(tiny_model())) and len(ledger.operations) == 3
    monkeypatch.setattr(MemitSeq, "compute", compute)
    ledger.edit(FACTS[3:])
    assert same_weights(model, weights_of(whole))


def test_a_run_that_cannot_begin_leaves_the_edits_where_they_are(moments, tmp_path):
    model = tiny_model()
    first = edit(model, moments, FACTS[:2], ledger=tmp_path / "ledger")
    kept = weights_of(model)
    with pytest.raises(UserError, match="belongs to another run"):
        edit(model, moments, FACTS, "memit", ledger=tmp_path / "ledger")
    assert same_weights(model, kept) and first.applied == 2
    with pytest.raises(UserError, match="edit_batch_size=0"):
        edit(model, moments, FACTS, size=0, ledger=tmp_path / "ledger")
    first.restore()
    assert same_weights(model, weights_of(tiny_model()))
