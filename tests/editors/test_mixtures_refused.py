"""What cannot be edited in a mixture is refused, with the reason and a way out."""

from __future__ import annotations

import pytest

from lm_eval_edit import UserError, edit_model
from lm_eval_edit.editors import base
from lm_eval_edit.editors.base import edit_routed, editor_names, find_editor
from lm_eval_edit.editors.hyperparameters import resolve
from lm_eval_edit.edits.opened import without_weights
from lm_eval_edit.errors import ConfigurationError
from tests.support.mixture_edits import ROUTED, edited, subject_ids
from tests.support.mixtures import (
    explicit_second_moments,
    mixture_model,
    plain_routing,
)
from tests.support.tiny import FACTS, TEMPLATES, tiny_tokenizer

pytestmark = pytest.mark.libraries


def test_rome_is_refused_where_no_expert_has_enough_of_the_gates():
    model = mixture_model("qwen3_moe")
    _, _, gates = plain_routing(model, subject_ids(FACTS[0]), 1)
    share = float(gates.max() / gates.sum())
    assert 0.5 <= share < 1
    options = {"layers": [1], "v_num_grad_steps": 2}
    with pytest.raises(UserError, match=rf"{share:.3f} of all, which is below min_gate={share + 0.005:g}"):
        edited(model, "rome", FACTS[:1], 1, options | {"min_gate": share + 0.005}, context_templates=TEMPLATES)
    assert edited(model, "rome", FACTS[:1], 1, options | {"min_gate": share - 0.005}, context_templates=TEMPLATES)


@pytest.mark.parametrize(
    ("editor", "options", "why"),
    [
        ("kn", {}, "it scores the neurons of one MLP per layer"),
        ("ultraedit", {"layers": [1]}, "one key and one output gradient per token of a linear map"),
        ("betaedit", {"layers": [1]}, "its null space is found anew from all earlier keys"),
    ],
)
def test_methods_that_cannot_edit_experts_say_why(editor, options, why):
    model = mixture_model("qwen3_moe")
    with pytest.raises(ConfigurationError, match=why) as caught:
        edit_model(model, tiny_tokenizer(), FACTS[:1], editor, options=options, progress=False)
    assert "Methods that can are editor=rome, r_rome, memit, memit_seq, encore, emmet, alphaedit, ft" in str(
        caught.value
    )
    assert "kn" not in edit_routed() and set(edit_routed()) < set(editor_names())


def test_a_method_of_another_package_is_named_where_it_edits_experts(monkeypatch):
    monkeypatch.setattr(
        base, "_entry_points", lambda: {"theirs": "tests.support.editors:Experts", "gone": "no.where:At"}
    )
    assert edit_routed()[-2:] == ["ft", "theirs"]


@pytest.mark.parametrize("name", ["down_proj", "gate_up_proj", "experts", "mlp.experts.down_proj"])
def test_lora_refuses_stacked_experts_also_beside_maps_that_it_adapts(name):
    options = {"target_modules": ["q_proj", name]}
    model = mixture_model("qwen3_moe")
    with pytest.raises(UserError, match=f"target_modules: {name} holds a mixture's experts: its adapters are for lin"):
        edit_model(model, tiny_tokenizer(), FACTS[:1], "lora", options=options, progress=False)
    resolved, _ = resolve(find_editor("lora"), model.config, options)
    (problem,) = resolved.editor.file_problems(lambda: without_weights(model.config))
    assert "self_attn.q_proj, self_attn.v_proj, or use editor=rome, r_rome" in problem


def test_edit_experts_is_checked():
    model = mixture_model("deepseek_v3")
    with pytest.raises(ConfigurationError, match="edit_experts='both': want shared or routed"):
        edited(model, "memit", options=ROUTED | {"edit_experts": "both"})
    with pytest.raises(ConfigurationError, match="edit_experts=routed: layers 0 of this model have no mixture"):
        edited(model, "memit", options=ROUTED | {"layers": [0]})


def test_moments_of_another_layout_are_refused():
    model = mixture_model("qwen3_moe")
    moments = {name: moment[0] for name, moment in explicit_second_moments(model).items()}
    with pytest.raises(UserError, match=r"has shape \(16, 16\), this model's 4 experts' keys have 16 dimensions"):
        edit_model(model, tiny_tokenizer(), FACTS[:1], "memit", options={"layers": [1]}, second_moments=moments,
                   progress=False)  # fmt: skip
