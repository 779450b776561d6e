"""EMMET: equal to the published implementation; an equality constraint where MEMIT has a compromise."""

from __future__ import annotations

import pytest
import torch

from lm_eval_edit import UserError, edit_model
from lm_eval_edit.editors._shared.keys import subject_states
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.emmet import Emmet, EmmetOptions
from lm_eval_edit.editors.hyperparameters import presets
from lm_eval_edit.editors.memit import Memit, MemitOptions
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from tests.support.published import MODELS, relative_errors
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

MODULE = "transformer.h.1.mlp.c_proj"
OPTIONS = {"layers": (1,), "v_num_grad_steps": 10, "v_weight_decay": 1e-3, "clamp_norm_factor": 4.0}


@pytest.fixture(scope="module")
def context() -> EditContext:
    model = tiny_model(torch.float64)
    moments = SecondMoments(tiny_second_moments(model))
    return EditContext(model, tiny_tokenizer(), Architecture.discover(model), NESTED_TEMPLATES, moments)


def update(context, editor) -> torch.Tensor:
    """(f, d) the update of all four facts."""
    (delta,) = editor.compute(context, FACTS).deltas.values()
    return delta.dense(torch.float64)


def emmet(**extra) -> Emmet:
    return Emmet(EmmetOptions(**OPTIONS | extra))


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_published_delta(reference, name):
    ((_, error),) = relative_errors(reference, "EMMET", name, "emmet")
    assert error <= 1e-6


def test_unrelaxed_the_facts_are_met_exactly_and_memit_does_not(context):
    states = subject_states(context, FACTS, [1], 1)
    wanted = emmet()._goals(context, FACTS, 1).values - states.outputs  # (n, d)

    def missed(editor) -> float:
        return float((states.keys[1].T @ update(context, editor) - wanted).norm() / wanted.norm())

    assert missed(emmet(emmet_lambda=0.0)) < 1e-9
    assert missed(emmet(emmet_lambda=0.1)) > 0.01
    assert missed(Memit(MemitOptions(**OPTIONS))) > 0.1


def test_among_the_updates_that_meet_the_facts_it_disturbs_text_least(context):
    moment = context.second_moments[MODULE]
    found = update(context, emmet(emmet_lambda=0.0))
    keys = subject_states(context, FACTS, [1], 1).keys[1]
    other = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    other -= keys @ torch.linalg.solve(keys.T @ keys, keys.T @ other)  # changes nothing for the facts: Kᵀ other = 0

    def disturbance(update) -> float:
        return float((update * (moment @ update)).sum())

    assert abs(float((other * (moment @ found)).sum())) < 1e-9 * disturbance(found), "stationary within the constraint"
    assert disturbance(found + 1e-3 * other) > disturbance(found)


def test_relaxed_by_one_it_is_memit(context):
    torch.testing.assert_close(
        update(context, emmet(emmet_lambda=1.0, mom2_update_weight=1e4)),
        update(context, Memit(MemitOptions(**OPTIONS, mom2_update_weight=1e4))),
    )


def test_the_weight_on_the_updates_norm(context):
    """A = C'⁻¹K (KᵀC'⁻¹K + ρI)⁻¹ with C' = λC + μI, against plain inverses; a larger μ, a smaller norm."""
    keys = subject_states(context, FACTS, [1], 1).keys[1]
    weighted = 3.0 * context.second_moments[MODULE] + 5.0 * torch.eye(96)
    whitened = torch.linalg.inv(weighted) @ keys
    plain = whitened @ torch.linalg.inv(keys.T @ whitened + 0.2 * torch.eye(4))
    editor = emmet(mom2_update_weight=3.0, update_norm_lambda=5.0, emmet_lambda=0.2)
    torch.testing.assert_close(editor._directions(context, 1, keys, ()), plain, rtol=1e-8, atol=1e-10)
    assert update(context, emmet(update_norm_lambda=1e5, emmet_lambda=0.0)).norm() < (
        update(context, emmet(emmet_lambda=0.0)).norm()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_edits_take_and_restore_bit_for_bit(context, dtype):
    model = tiny_model(dtype)
    kept = weights_of(model)
    ledger = edit_model(
        model, tiny_tokenizer(), LEARNABLE, "emmet", 2, options=OPTIONS | {"emmet_lambda": 0.0, "v_num_grad_steps": 25},
        context_templates=NESTED_TEMPLATES, second_moments=context.second_moments, progress=False,
    )  # fmt: skip
    record = ledger.operations[0].record
    assert record["before"]["em"] == 0.0 and record["after"]["em"] == 1.0 and record["ranks"] == {MODULE + ".weight": 2}
    ledger.restore()
    assert same_weights(model, kept)


def test_a_fact_given_twice_cannot_be_met_exactly(context):
    twice = [FACTS[0], FACTS[0], FACTS[1]]
    with pytest.raises(UserError, match=r"3 facts' keys is not positive definite.* A fact may be given twice"):
        emmet(emmet_lambda=0.0).compute(context, twice)
    emmet().compute(context, twice)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alg_name": "MEMIT"}, "the hyper-parameters are for MEMIT, the editor is emmet"),
        ({"emmet_lambda": -1}, "emmet_lambda=-1: want a number that is not negative"),
        ({"update_norm_lambda": -1}, "update_norm_lambda=-1: want a number that is not negative"),
        ({"mom2_update_weight": 0}, "mom2_update_weight=0: want a positive number"),
        ({"layers": [1]}, "emmet with these options needs the second moments of transformer.h.1.mlp.c_proj"),
    ],
)
def test_wrong_options(given, message):
    with pytest.raises(UserError, match=message):
        edit_model(tiny_model(), tiny_tokenizer(), FACTS, "emmet", 4, options=OPTIONS | given, progress=False)


def test_one_layer_as_deep_as_romes_and_presets():
    assert Emmet.default_layers(48) == (17,) and Emmet.default_layers(12) == (4,)
    assert [(p.name, p.options["layers"]) for p in presets("emmet")] == [
        ("gpt2-xl", [17]),
        ("llama-7b", [5]),
        ("demo with own_targets", [0, 1]),
        ("demo", [0]),
    ]
