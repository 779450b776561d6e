"""R-ROME: equal to the published implementation; one key throughout."""

from __future__ import annotations

import random

import pytest
import torch

from lm_eval_edit import UserError, demo, edit_model, load_facts
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.hyperparameters import presets
from lm_eval_edit.editors.r_rome import RRome, RRomeOptions
from lm_eval_edit.editors.rome import Rome
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from tests.support.published import MODELS, load_model, relative_errors
from tests.support.tiny import FACTS, LEARNABLE, TEMPLATES, same_weights, tiny_model, tiny_tokenizer, weights_of

OPTIONS = {"layers": (1,), "v_num_grad_steps": 25, "v_lr": 0.5, "v_weight_decay": 1e-3, "clamp_norm_factor": 8}
PROMPT_KEY = {"enable_prompt_keys": True, "enable_random_prefix_keys": False}


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_published_deltas(reference, name):
    errors = dict(relative_errors(reference, "R-ROME", name, "r_rome"))
    assert len(errors) == 4 and max(errors.values()) <= 1e-8, errors


@pytest.mark.parametrize("extra", [{}, PROMPT_KEY])
def test_its_own_key_gives_the_target_value_and_romes_does_not(extra):
    """(W + ΔW) k* + b = v* for the key k* of the direction; ROME fulfils it for another key only."""
    model, fact = tiny_model(torch.float64), FACTS[0]
    context = EditContext(model, tiny_tokenizer(), Architecture.discover(model), TEMPLATES, SecondMoments())
    editor = RRome(RRomeOptions(**OPTIONS, **extra))
    targets = editor._targets(context, fact, 1)
    keys = targets.keys[0]
    key = keys[0] if extra else keys.mean(dim=0)
    projection = model.transformer.h[1].mlp.c_proj
    before = (key @ projection.weight + projection.bias).detach()
    value = targets.value[0]

    def missed(editor) -> float:
        (delta,) = editor.compute(context, [fact]).deltas.values()
        return float((before + key @ delta.dense(torch.float64) - value).norm() / value.norm())

    assert missed(editor) < 1e-12
    assert (before - value).norm() / value.norm() > 0.1
    if not extra:
        rome = Rome(Rome.Options(**OPTIONS))
        assert missed(rome) > 1e-3


def test_the_edit_takes_and_restores_bit_for_bit():
    model = tiny_model()
    kept = weights_of(model)
    for fact in LEARNABLE:
        ledger = edit_model(
            model, tiny_tokenizer(), [fact], "r_rome", options=OPTIONS, context_templates=TEMPLATES, progress=False
        )
        assert ledger.operations[0].record["after"]["em"] == 1.0 > ledger.operations[0].record["before"]["em"]
        ledger.restore()
        assert same_weights(model, kept)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"original_implementation": True}, "original_implementation=True is ROME .*: use editor=rome"),
        ({"enable_prompt_keys": True}, "R-ROME uses one of the two keys; set exactly one of them true"),
        ({"enable_random_prefix_keys": False}, "R-ROME uses one of the two keys; set exactly one of them true"),
        ({"fact_token": "last"}, "only 'subject_last' is supported"),
        ({"alg_name": "ROME"}, "the hyper-parameters are for ROME, the editor is r_rome"),
    ],
)
def test_wrong_options(given, message):
    with pytest.raises(UserError, match=message):
        edit_model(tiny_model(), tiny_tokenizer(), FACTS[:1], "r_rome", options={"layers": [1]} | given)


def test_the_demos_preset_takes():
    model, tokenizer = load_model(demo.CHECKPOINT, torch.float32)
    taken = []
    for fact in random.Random(0).sample(list(load_facts("demo")), 10):
        ledger = edit_model(model, tokenizer, [fact], "r_rome", second_moments=demo.SECOND_MOMENTS, progress=False)
        taken.append(ledger.operations[0].record["after"]["em"])
        ledger.restore()
    assert sum(taken) / len(taken) >= 0.9


def test_presets_are_romes():
    rome = {preset.name: preset.options for preset in presets("rome")}
    ours = {preset.name: preset.options for preset in presets("r_rome")}
    assert ours and all(rome[name] == options for name, options in ours.items())
