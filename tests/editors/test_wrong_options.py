"""Every method's wrong options end a run before its model loads, told by name, value and remedy."""

from __future__ import annotations

import pytest

from lm_eval_edit import ConfigurationError, UserError, edit_model
from lm_eval_edit.editors.base import find_editor
from lm_eval_edit.editors.hyperparameters import resolve
from lm_eval_edit.plan import make_plan
from tests.support.tiny import FACTS, tiny_model, tiny_tokenizer, write_facts

FAMILY = ("memit", "memit_seq", "encore", "emmet", "alphaedit", "betaedit")


def plan(editor, ours=None, **hyperparameters):
    return make_plan("demo", {"editor": editor, "n_edits": 2} | (ours or {}), hyperparameters)


def problems(editor, **hyperparameters):
    with pytest.raises(ConfigurationError) as told:
        plan(editor, **hyperparameters)
    return told.value.problems


# ----------------------------------------------------------------------------------------- options that are not heeded


@pytest.mark.parametrize(
    ("editor", "option", "owner"),
    [
        ("rome", "stop_after_correct", "encore"),
        ("rome", "own_targets", "memit"),
        ("ft", "norm_anchor", "alphaedit"),
        ("lora", "append_eos", "ft has it"),
        ("memit", "lambda_prev", "memit_seq"),
        ("alphaedit", "update_norm_lambda", "encore"),
        ("alphaedit", "refresh_every", "betaedit has it"),
        ("ultraedit", "v_lr", "rome"),
        ("memit", "suppression_strength", "sphere has it"),
        ("none", "v_lr", "memit"),
    ],
)
def test_an_option_of_another_method_says_whose_it_is(editor, option, owner):
    [told] = problems(editor, **{option: 1})
    assert told.startswith(f"{option}: editor={editor} has no such hyper-parameter; ") and owner in told


def test_a_word_that_no_method_knows_is_still_an_option_of_nobodys():
    [told] = problems("rome", v_lrr=1)
    assert told.startswith("v_lrr: no such option of edited_hf.")


@pytest.mark.parametrize("name", FAMILY)
def test_targets_of_their_own_need_two_layers(name):
    with pytest.raises(ConfigurationError) as error:
        plan(name, {"edit_layers": 0}, own_targets=True)
    [told] = error.value.problems
    assert "own_targets=True: the first and the last layer" in told and "give edit_layers=FIRST-LAST" in told


@pytest.mark.parametrize("editor", ["ft", "lora", "ultraedit", "rome"])
def test_a_layer_or_a_linear_map_that_is_there_twice(editor):
    config = {"layers": [1, 1]} if editor != "rome" else {"layers": [1, 1, 2, 2]}
    with pytest.raises(ConfigurationError) as told:
        plan(editor, {"edit_config": config})
    assert "layers: 1 is there twice; give each layer once" in told.value.problems
    with pytest.raises(UserError, match="layers: 1 is there twice"):
        edit_model(tiny_model(), tiny_tokenizer(), FACTS[:1], editor, options=config)
    names = ["transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_fc.weight"]
    assert problems("ultraedit", inner_params=names) == [
        "inner_params: transformer.h.1.mlp.c_fc.weight is there twice; give each linear map once"
    ]


# ----------------------------------------------------------------------------------------------- the editor it is over


@pytest.mark.parametrize(
    ("editor", "given", "message"),
    [
        ("sphere", {"over": "alphaedti"}, "over=alphaedti: .*no such editor. Did you mean 'alphaedit'"),
        ("sphere", {"over": "sphere"}, "over=sphere: sphere cannot change what sphere computes"),
        ("sphere", {"over": "rect"}, "over=rect: sphere cannot change what rect computes"),
        ("rect", {"over": "rmoe", "v_lr": 0.1}, "over=rmoe: .*no such editor. Did you mean 'rome'"),
        ("random", {"like": "nothing at all"}, "like=nothing at all: .*no such editor"),
        ("prune", {"over": "prune"}, "over=prune: prune cannot change"),
        ("nobody", {"v_lr": 0.1}, "editor=nobody: no such editor"),
    ],
)
def test_the_stock_command_is_told_which_editor_is_none_and_nothing_else(editor, given, message):
    [told] = problems(editor, **given)
    with pytest.raises(UserError, match=message):
        raise UserError(told)


def test_what_the_inner_editor_does_not_accept_is_told_through_the_outer():
    [told] = problems("sphere", over="alphaedit", L2=-1)
    assert told == "L2=-1: want a positive number"
    [told] = problems("sphere", over="alphaedit", norm_anchor="auto")
    assert "the run edits 2. Give norm_anchor_facts=2" in told


# ----------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("value", ["nan", "inf", float("nan"), float("-inf")])
@pytest.mark.parametrize(
    ("editor", "option"),
    [("rome", "v_lr"), ("memit", "mom2_update_weight"), ("memit_seq", "lambda_prev"), ("encore", "update_norm_lambda"),
     ("alphaedit", "L2"), ("betaedit", "nullspace_threshold"), ("ultraedit", "lr"), ("ft", "lr"), ("lora", "lr"),
     ("sphere", "cumulative_ratio"), ("kn", "lambda1"), ("rect", "keep")],
)  # fmt: skip
def test_no_number_is_infinite_or_none(editor, option, value):
    [told] = problems(editor, **{option: value})
    assert told.startswith(f"{option}={value!r}: want a finite number")


@pytest.mark.parametrize(
    ("editor", "option", "value"),
    [(e, o, v) for e in ("rome", *FAMILY) for o, v in (("v_lr", 0), ("v_num_grad_steps", 0), ("clamp_norm_factor", -1),
                                                       ("kl_factor", -0.1), ("v_weight_decay", -1))]
    + [("ft", "lr", -1), ("ft", "weight_decay", -1), ("lora", "lr", 0), ("lora", "lora_alpha", 0)],
)  # fmt: skip
def test_numbers_of_the_wrong_sign(editor, option, value):
    [told] = problems(editor, **{option: value})
    assert told.startswith(f"{option}={value}: want a ") and ("positive number" in told or "not negative" in told)


# --------------------------------------------------------------------------------------------------- what is not there


def test_an_anchors_file_is_read_before_the_model_is(tmp_path):
    few = write_facts(tmp_path / "few.jsonl")
    [told] = problems("memit", norm_anchor=str(few))
    assert f"over 50 facts, and {few} has 4. Give norm_anchor_facts=4" in told
    other = tmp_path / "other.jsonl"
    other.write_text('{"a": 1}\n')
    assert problems("memit", norm_anchor=str(other))[0].startswith(f"norm_anchor={other}: ")
    [told] = problems("memit", norm_anchor=str(tmp_path / "nowhere.jsonl"))
    assert "want a positive number, auto, or a file of facts that is there" in told
    assert plan("memit", norm_anchor=str(few), norm_anchor_facts=4).hyperparameters is not None


@pytest.mark.parametrize("editor", [*FAMILY, "sphere", "prune"])
def test_a_method_without_its_second_moments_says_how_to_make_them(editor):
    model = tiny_model()
    with pytest.raises(UserError, match=f"(?s){editor}.*second moments of .*c_proj.*lm-eval-edit stats"):
        edit_model(model, tiny_tokenizer(), FACTS, editor, 2, context_templates=[["{}"], ["I . {}"]], progress=False)


@pytest.mark.parametrize("editor", ["ultraedit", "ft", "rome"])
def test_a_method_that_needs_none_does_without(editor):
    found, problems = resolve(find_editor(editor), tiny_model().config, {})
    assert not problems and not found.editor.needs_second_moments()


def test_ultraedit_is_told_either_layers_or_names():
    names = ["transformer.h.0.mlp.c_fc"]
    [told] = problems("ultraedit", inner_params=names, layers=[1])
    assert told == "layers and inner_params both say what is edited: give one of them"
    assert any("no linear map's weight" in each for each in problems("ultraedit", inner_params=["transformer.h.9.mlp"]))
    found = plan("ultraedit").hyperparameters.editor
    assert found.options.layers == (1, 2), "with neither, the preset's"
    found, _ = resolve(find_editor("ultraedit"), tiny_model().config, {})
    assert found.editor.options.layers == (0, 1), "without a preset, by depth"


def test_a_minibatch_of_more_facts_than_there_are_is_all_of_them():
    """The presets' hundred must not forbid a run of ten."""
    found = []
    for size in (4, 100):
        model, options = tiny_model(), {"layers": [1], "num_steps": 3, "minibatch": size, "lr": 1e-3}
        edit_model(model, tiny_tokenizer(), FACTS, "ft", 4, options=options, progress=False)
        found.append(model.transformer.h[1].mlp.c_proj.weight)
    assert bool((found[0] == found[1]).all())
