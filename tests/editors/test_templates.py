"""Context templates: what is given fits the editor, or is refused with both forms shown."""

from __future__ import annotations

import pytest

from lm_eval_edit import UserError, edit_model
from lm_eval_edit.editors.base import find_editor
from lm_eval_edit.editors.hyperparameters import resolve
from lm_eval_edit.editors.templates import TemplatePlan, check_templates, sample_templates
from tests.support.tiny import FACTS, same_weights, tiny_model, tiny_second_moments, tiny_tokenizer, weights_of

FLAT, NESTED = TemplatePlan(((5, 5),)), TemplatePlan(((10, 5),), nested=True, braces=" ")


@pytest.mark.parametrize(
    ("plan", "templates"),
    [(FLAT, ["{}"]), (FLAT, ("{}", "So. {}")), (NESTED, [["{}"]]), (NESTED, (("{}",), ("So. {}", "The. {}")))],
)
def test_the_two_forms_are_accepted(plan, templates):
    check_templates(templates, plan, "some editor")


@pytest.mark.parametrize(
    ("plan", "templates", "message"),
    [
        (FLAT, [["{}"], ["So. {}"]], r"wants a flat list, .*; got a list of lists, as .* the MEMIT family"),
        (NESTED, ["{}", "So. {}"], r"wants a list of lists, .*; got a flat list, as .* the ROME family"),
        (NESTED, [["{}"], "So. {}"], r"some editor wants lists that are not empty"),
        (NESTED, [["{}"], []], r"some editor wants lists that are not empty"),
        (FLAT, ["So. {}", "{}"], r"the first should be the bare '\{\}', .*; got 'So. \{\}'"),
        (NESTED, [["So. {}"], ["{}"]], r"the first should be the bare '\{\}', .*; got 'So. \{\}'"),
        (FLAT, ["{}", "So."], r"'So.' should be a text with \{\} once"),
        (FLAT, ["{}", "{} and {}"], r"'\{\} and \{\}' should be a text with \{\} once"),
        (NESTED, [["{}"], [3]], r"3 should be a text with \{\} once"),
    ],
)
def test_others_are_refused(plan, templates, message):
    with pytest.raises(UserError, match=message):
        check_templates(templates, plan, "some editor")


@pytest.mark.parametrize("how", ["argument", "option"])
def test_an_editor_given_the_other_familys_templates_changes_nothing(how):
    model, nested = tiny_model(), [["{}"], ["The weather is fine . {}"]]
    kept = weights_of(model)
    given = (
        {"context_templates": nested, "options": {"layers": [1]}}
        if how == "argument"
        else {"options": {"layers": [1], "context_templates": nested}}
    )
    with pytest.raises(UserError, match="rome wants a flat list"):
        edit_model(model, tiny_tokenizer(), FACTS[:1], "rome", progress=False, **given)
    assert same_weights(model, kept)


@pytest.mark.parametrize(
    "given", [[[10, 2]], [[10, 7]], [[0, 5]], [[10, 5, 5]], [10, 5], [["a", 5]], [[10, 5], [10.5, 5]]]
)
@pytest.mark.parametrize("name", ["rome", "memit", "encore"])
def test_samples_that_the_start_words_cannot_share_are_refused(name, given):
    """[[10, 2]] sampled none at all, and a mean over none is no number: keys that are not finite, in an error later."""
    found, [problem] = resolve(find_editor(name), tiny_model().config, {"context_template_length_params": given})
    assert found is None and "context_template_length_params=" in problem and "samples a multiple of 5" in problem


def test_no_samples_asked_for_leave_the_bare_prompt_alone():
    plan = TemplatePlan((), nested=True)
    assert sample_templates(tiny_model(), tiny_tokenizer(), plan, 0) == [["{}"]]
    moments = tiny_second_moments(tiny_model())
    options = {"layers": [1], "context_template_length_params": [], "mom2_update_weight": 10, "v_num_grad_steps": 3}
    ledger = edit_model(tiny_model(), tiny_tokenizer(), FACTS[:1], "memit", options=options, second_moments=moments,
                        progress=False)  # fmt: skip
    assert ledger.operations[0].record["delta_norms"]
