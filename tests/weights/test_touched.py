"""Edits of some experts: the others are neither written nor copied, and every figure is that of the whole parameter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lm_eval_edit.weights.delta import DenseDelta
from lm_eval_edit.weights.edited import EditedWeights, temporarily_applied
from lm_eval_edit.weights.stacked import SlicesDelta, StackedDelta
from tests.support.memory import Made

SHAPE = (6, 8, 5)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def model(dtype=torch.float32) -> nn.Module:
    made = nn.Module()
    made.experts = nn.Parameter(torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype))
    return made


def stacked(*places: int, seed: int = 1, scale: float = 0.1) -> StackedDelta:
    generator = torch.Generator().manual_seed(seed)
    left = scale * torch.randn(len(places), 8, 2, generator=generator)
    right = torch.randn(len(places), 2, 5, generator=generator)
    return StackedDelta(torch.tensor(places), left, right, torch.tensor(SHAPE))


def dense_slices(*places: int, seed: int = 2) -> SlicesDelta:
    values = 0.1 * torch.randn(len(places), 8, 5, generator=torch.Generator().manual_seed(seed))
    return SlicesDelta(torch.tensor(places), values, torch.tensor(SHAPE))


def whole(delta) -> DenseDelta:
    return DenseDelta(delta.dense())


@every_dtype
def test_only_the_named_experts_change_and_all_come_back_bit_for_bit(dtype):
    edited = model(dtype)
    kept = edited.experts.detach().clone()
    weights = EditedWeights(edited)
    for seed in range(4):
        weights.apply({"experts": stacked(4, 1, seed=seed)})
        weights.apply({"experts": dense_slices(1, 2, seed=seed)})
    changed = [i for i in range(6) if not torch.equal(edited.experts[i], kept[i])]
    assert changed == [1, 2, 4] and weights.problems() == []
    weights.restore()
    assert torch.equal(edited.experts, kept) and not weights.touched


def test_the_others_are_not_copied():
    edited = model(torch.bfloat16)
    weights, delta = EditedWeights(edited), dense_slices(3)
    with Made() as made:
        weights.apply({"experts": delta})
    # Of the slice: its original and its exact sum. The parameter has six of them.
    assert 0 < made.elements <= 2 * 40


@every_dtype
def test_slices_give_the_bits_and_figures_of_the_whole_parameter(dtype):
    by_slice, as_whole = model(dtype), model(dtype)
    ours, theirs = EditedWeights(by_slice), EditedWeights(as_whole)
    for delta in (stacked(4, 1), dense_slices(1, 0), stacked(0, seed=7)):
        ours.apply({"experts": delta})
        theirs.apply({"experts": whole(delta)})
    torch.testing.assert_close(by_slice.experts, as_whole.experts, rtol=1e-6 if dtype.itemsize > 2 else 0, atol=1e-7)
    found, wanted = ours.report()["experts"], theirs.report()["experts"]
    slices = found.pop("slices")
    assert found == pytest.approx(wanted, rel=1e-4) and "slices" not in wanted
    assert list(slices) == ["0", "1", "4"]
    change = theirs.changes()["experts"][1]
    assert {i: s["delta_norm"] for i, s in slices.items()} == pytest.approx(
        {i: float(change[int(i)].norm()) for i in slices}, rel=1e-5
    )
    assert all(0 < s["relative_norm"] < 1 for s in slices.values())
    assert all((s["rounding_loss"] > 0) == (dtype.itemsize == 2) for s in slices.values())
    for got, want in zip(ours.changes()["experts"], theirs.changes()["experts"], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_an_update_of_the_whole_after_some_of_slices_keeps_every_original():
    edited = model(torch.bfloat16)
    kept = edited.experts.detach().clone()
    weights, reference = EditedWeights(edited), kept.float()
    for delta in (stacked(4, 1), whole(dense_slices(2, 1)), stacked(5, 4, seed=9)):
        weights.apply({"experts": delta})
        reference = reference + delta.dense()
    assert torch.equal(edited.experts, reference.bfloat16()), "sums stay exact through the change of form"
    assert "slices" not in weights.report()["experts"]
    weights.restore()
    assert torch.equal(edited.experts, kept)


@every_dtype
def test_what_a_correction_reached_beyond_the_edits_is_untouched_again(dtype):
    edited = model(dtype)
    weights = EditedWeights(edited)
    weights.apply({"experts": stacked(4, 1)})
    before, fingerprint = edited.experts.detach().clone(), weights.fingerprint("base")
    for correction in (stacked(1, 2, seed=3), whole(stacked(0, seed=4))):
        copies = weights.copied(["experts"])
        weights.apply({"experts": correction})
        assert weights.fingerprint("base") != fingerprint
        weights.put_back(copies)
        assert torch.equal(edited.experts, before) and weights.fingerprint("base") == fingerprint
        assert list(weights.report()["experts"]["slices"]) == ["1", "4"]
    again = EditedWeights(model(dtype))
    for each in (weights, again):
        each.apply({"experts": stacked(1, seed=8)}) if each is weights else [
            each.apply({"experts": delta}) for delta in (stacked(4, 1), stacked(1, seed=8))
        ]
    assert torch.equal(again.model.experts, edited.experts), "editing goes on from where it was, to the bit"


def test_a_fingerprint_tells_which_expert_has_which_bits():
    weights = EditedWeights(model())
    assert weights.fingerprint("base") == "base"
    weights.apply({"experts": stacked(4, 1)})
    found = weights.fingerprint("base")
    assert found == weights.fingerprint("base", unseen=False)
    with torch.no_grad():
        weights.model.experts[4, 0, 0] += 1
    assert weights.fingerprint("base", unseen=False) == found != weights.fingerprint("base")
    weights.restore()
    weights.apply({"experts": stacked(1, 4)})
    other = weights.fingerprint("base")
    weights.restore()
    weights.apply({"experts": stacked(4, 1)})
    assert other != found == weights.fingerprint("base")


def test_problems_are_the_parameters():
    weights = EditedWeights(model())
    weights.apply({"experts": stacked(2, 3, scale=0.0)})
    assert weights.problems() == ["experts did not change"]
    weights.apply({"experts": stacked(2)})
    assert weights.problems() == []
    weights.apply({"experts": stacked(3, scale=float("inf"))})
    assert weights.problems() == ["experts holds values that are not finite"]


def test_another_shape_changes_nothing_and_a_block_restores():
    edited = model()
    kept = edited.experts.detach().clone()
    wrong = SlicesDelta(torch.tensor([0]), torch.ones(1, 5, 8), torch.tensor([6, 5, 8]))
    with pytest.raises(ValueError, match=r"has shape \(6, 5, 8\), the parameter \(6, 8, 5\)"):
        EditedWeights(edited).apply({"experts": wrong})
    with temporarily_applied(edited, {"experts": stacked(0, 5)}):
        assert not torch.equal(edited.experts, kept)
    assert torch.equal(edited.experts, kept)


def test_an_update_of_no_slice_is_none():
    weights = EditedWeights(model())
    nothing = stacked()
    weights.apply({"experts": nothing})
    assert weights.problems() == ["experts did not change"] and weights.report()["experts"]["delta_norm"] == 0
    assert nothing.norm() == 0 and nothing.mapped(lambda place, one: one).places == []
