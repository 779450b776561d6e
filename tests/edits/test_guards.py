"""What stops an edit: values that no weight can hold, edits that change nothing, wrong arguments."""

from __future__ import annotations

import logging

import pytest
import torch

from lm_eval_edit import ConfigurationError, EditError, UserError, edit_model
from lm_eval_edit.editors import Editor, EditResult
from lm_eval_edit.editors.base import editor_names, option_names
from lm_eval_edit.editors.rome import Rome, RomeOptions
from lm_eval_edit.weights.delta import DenseDelta
from tests.support.small_edits import edit
from tests.support.tiny import FACTS, LEARNABLE, same_weights, tiny_model, tiny_tokenizer, weights_of


class Constant(Editor):
    """An editor for tests: adds one number to every entry of one matrix."""

    name, summary, source, Options = "constant", "for tests", "here", RomeOptions
    value = 0.0

    def compute(self, context, facts, history=()):
        return EditResult({"transformer.h.1.mlp.c_proj.weight": DenseDelta(torch.full((96, 32), self.value))})


class NotANumber(Constant):
    value = float("nan")


class Huge(Constant):
    value = 1e30


class Imperceptible(Constant):
    value = 1e-6


@pytest.mark.parametrize(
    ("editor", "dtype", "message"),
    [
        ("Constant", torch.float32, "1 edits changed no weight; the model is the unedited one"),
        ("NotANumber", torch.float32, "gave values for transformer.h.1.mlp.c_proj.weight that are not finite"),
        ("Huge", torch.float16, "after 1 edits transformer.h.1.mlp.c_proj.weight holds values that are not finite"),
        ("Imperceptible", torch.bfloat16, "1 edits changed no weight"),
    ],
)
def test_guards_fail_loudly_and_restore(editor, dtype, message):
    model = tiny_model(dtype)
    kept = weights_of(model)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight.abs_().add_(1)  # no entry so small that 1e-6 reaches it in bfloat16
    kept = weights_of(model)
    with pytest.raises(EditError, match=message):
        edit(model, LEARNABLE[:1], editor=f"tests.edits.test_guards:{editor}")
    assert same_weights(model, kept)


def test_edits_that_do_not_take_are_flagged(caplog):
    model = tiny_model()
    with caplog.at_level(logging.WARNING):
        ledger = edit(model, LEARNABLE[:1], editor="tests.edits.test_guards:Imperceptible")
    assert "the edits did not take" in caplog.text
    assert ledger.guards["answers_changed_ok"] is False and ledger.guards["weights_changed"] is True


# --------------------------------------------------------------------------------------------------- wrong arguments


def test_all_problems_are_told_at_once_before_anything_changes():
    model = tiny_model()
    kept = weights_of(model)
    with pytest.raises(ConfigurationError) as caught:
        edit_model(
            model, tiny_tokenizer(), [FACTS[0], FACTS[1].__class__("A", "no subject here", "x", id="bad")],
            edit_batch_size=2, options={"v_lrr": 0.1, "v_num_grad_steps": 2.5, "layers": [1]}, progress=False,
        )  # fmt: skip
    text = str(caught.value)
    assert text.startswith("lm-eval-edit: 4 problems in the configuration")
    assert "fact bad: the subject 'A' is not in the prompt" in text
    assert "edit_batch_size=2: rome edits one fact at a time" in text
    assert "v_lrr: no hyper-parameter of rome. Did you mean 'v_lr'?" in text
    assert "v_num_grad_steps=2.5: want a whole number" in text
    assert same_weights(model, kept)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"editor": "rmoe"}, r"editor=rmoe: no such editor. Did you mean 'rome'\?"),
        ({"editor": "os:path"}, r"os:path is not a subclass of lm_eval_edit.editors.Editor"),
        ({"editor": "nowhere:Editor"}, r"nowhere:Editor cannot be imported"),
        ({"layers": [3]}, r"layer 3 is out of range: the model has layers 0 to 2"),
        ({"alg_name": "MEMIT"}, r"the hyper-parameters are for MEMIT, the editor is rome"),
        (
            {"mom2_adjustment": True},
            r"needs the second moments of transformer.h.1.mlp.c_proj; no second moments were given. Give "
            r"edit_second_moments=FILE .*, or mom2_adjustment: false in edit_config",
        ),
        ({"fact_token": "last"}, r"fact_token='last': only 'subject_last' is supported"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(UserError, match=message):
        edit(tiny_model(), FACTS[:1], **call)


def test_option_names_are_easyedits():
    assert {"v_lr", "v_num_grad_steps", "clamp_norm_factor", "kl_factor", "mom2_adjustment", "layers"} <= set(
        option_names(Rome)
    )


def test_another_packages_entry_point_is_an_editor(monkeypatch):
    from importlib import metadata

    point = metadata.EntryPoint("theirs", "tests.edits.test_guards:Imperceptible", "lm_eval_edit.editors")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [point] if "editors" in group else [])
    assert "theirs" in editor_names()
    assert edit(tiny_model(), LEARNABLE[:1], editor="theirs").operations
