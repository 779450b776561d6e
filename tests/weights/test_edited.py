"""Applying and restoring: exact in float32, one cast in bfloat16, nothing left behind."""

from __future__ import annotations

import pytest
import torch

from lm_eval_edit.editors.base import find_editor
from lm_eval_edit.edits.ledger import Ledger
from lm_eval_edit.weights.delta import DenseDelta, LowRankDelta
from lm_eval_edit.weights.edited import EditedWeights, model_fingerprint, temporarily_applied
from tests.support.memory import Made
from tests.support.tiny import same_weights, tiny_model, weights_of

NAME = "transformer.h.1.mlp.c_proj.weight"  # (96, 32)


def small_delta(seed: int, scale: float = 1e-3) -> LowRankDelta:
    generator = torch.Generator().manual_seed(seed)
    return LowRankDelta(scale * torch.randn(96, 1, generator=generator), torch.randn(1, 32, generator=generator))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_restore_is_bit_exact(dtype):
    model = tiny_model(dtype)
    kept, weights = weights_of(model), EditedWeights(model)
    for seed in range(5):
        weights.apply({NAME: small_delta(seed)})
    assert not same_weights(model, kept), "the edits are there"
    weights.restore()
    assert same_weights(model, kept)


def test_half_precision_sums_in_float32_and_casts_once():
    model = tiny_model(torch.bfloat16)
    original = model.get_parameter(NAME).detach().float().clone()
    deltas = [small_delta(seed, scale=1e-4) for seed in range(50)]
    exact = original + sum(delta.dense() for delta in deltas)
    weights = EditedWeights(model)
    for delta in deltas:
        weights.apply({NAME: delta})
    ours = model.get_parameter(NAME).detach().float()
    one_by_one = original.bfloat16()
    for delta in deltas:
        one_by_one = one_by_one + delta.dense().bfloat16()
    change = (exact - original).norm()
    assert (ours - exact).norm() < 0.5 * (one_by_one.float() - exact).norm(), "better than adding in bfloat16"
    report = weights.report()[NAME]
    assert report["rounding_loss"] == pytest.approx(float((ours - exact).norm() / change), rel=1e-3)
    assert report["rounding_loss"] > 0


def test_wrong_shape_changes_nothing():
    model = tiny_model()
    kept = weights_of(model)
    good, bad = (
        {NAME: small_delta(0)},
        {"transformer.h.0.mlp.c_proj.weight": LowRankDelta(torch.ones(3, 1), torch.ones(1, 3))},
    )
    with pytest.raises(ValueError, match=r"has shape \(3, 3\), the parameter \(96, 32\)"):
        EditedWeights(model).apply(good | bad)
    assert same_weights(model, kept)


def test_temporarily_applied_restores_even_after_an_error():
    model = tiny_model()
    kept = weights_of(model)
    with pytest.raises(KeyError), temporarily_applied(model, {NAME: small_delta(0)}):
        assert not same_weights(model, kept)
        raise KeyError
    assert same_weights(model, kept)


def test_problems_name_unchanged_and_non_finite_weights():
    model = tiny_model()
    weights = EditedWeights(model)
    weights.apply({NAME: DenseDelta(torch.zeros(96, 32))})
    assert weights.problems() == [f"{NAME} did not change"]
    weights.apply({NAME: DenseDelta(torch.full((96, 32), float("inf")))})
    assert weights.problems() == [f"{NAME} holds values that are not finite"]


def test_fingerprints_see_every_element_and_only_the_bits():
    model = tiny_model()
    before = model_fingerprint(model)
    assert model_fingerprint(tiny_model()) == before
    parameter = model.get_parameter(NAME)
    with torch.no_grad():
        swapped = parameter[3, 4].clone()
        parameter[3, 4], parameter[70, 1] = parameter[70, 1].clone(), swapped
    assert model_fingerprint(model) != before, "two elements that changed places are seen"
    weights = EditedWeights(tiny_model())
    clean = weights.fingerprint("base")
    weights.apply({NAME: small_delta(0)})
    edited = weights.fingerprint("base")
    weights.restore()
    assert edited != clean == weights.fingerprint("base") != weights.fingerprint("other base")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changes_are_made_when_they_are_asked_for_one_by_one(dtype):
    names = [f"transformer.h.{layer}.mlp.c_proj.weight" for layer in range(3)]
    model = tiny_model(dtype)
    originals = {name: model.get_parameter(name).detach().float().clone() for name in names}
    weights = EditedWeights(model)
    weights.apply({name: small_delta(seed) for seed, name in enumerate(names)})
    with Made() as made:
        changes = weights.changes()
        assert list(changes) == names and len(changes) == 3 and made.elements == 0
        original, change = changes[names[1]]
        assert made.elements <= 3 * original.numel(), "of one parameter"
    assert original.dtype == change.dtype == torch.float32 and torch.equal(original, originals[names[1]])
    torch.testing.assert_close(change, small_delta(1).dense(), rtol=0, atol=1e-6)


def test_an_editor_without_a_last_correction_is_not_given_copies_of_the_weights():
    """They would take two float32 copies of all that is edited, after every state that is evaluated."""
    weights = EditedWeights(tiny_model())
    weights.apply({NAME: small_delta(0)})
    ledger = Ledger({}, {}, weights, finish=find_editor("rome")(None).finish)
    with Made() as made:
        ledger.close()
    assert made.elements == 0
