"""PRUNE: the sum of a sequence's edits is restrained and takes its own place, at every length of the sequence."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from lm_eval_edit import ConfigurationError, edit_model
from lm_eval_edit.editors import EditResult
from lm_eval_edit.editors.prune import Prune, PruneOptions, restrain
from lm_eval_edit.weights.delta import DenseDelta, LowRankDelta
from tests.support.editors import Pair, PairOptions
from tests.support.tiny import FACTS, TEMPLATES, same_weights, tiny_model, tiny_tokenizer, weights_of

WEIGHT, BIAS = "transformer.h.1.mlp.c_proj.weight", "transformer.h.1.mlp.c_proj.bias"
ROME = {"layers": [1], "v_num_grad_steps": 8, "v_lr": 0.5, "v_weight_decay": 1e-3, "clamp_norm_factor": 8}
PAIR = "tests.editors.test_rect:Pair"


class WithBias(Pair):
    """For tests: changes a vector too, and much."""

    def compute(self, context, facts, history=()):
        deltas = super().compute(context, facts, history).deltas
        return EditResult(deltas | {BIAS: DenseDelta(torch.full((32,), 100.0))})


class Spread(Pair):
    """For tests: each operation's singular values are far apart."""

    def compute(self, context, facts, history=()):
        generator = torch.Generator().manual_seed(int(facts[0].id))
        left = torch.randn(96, 3, generator=generator) * torch.tensor([1.0, 0.1, 1e-3]) * self.options.size
        return EditResult({WEIGHT: LowRankDelta(left, torch.randn(3, 32, generator=generator))})


def edit(model, facts, editor="prune", batch=1, ledger=None, **options):
    return edit_model(
        model, tiny_tokenizer(), facts, editor, batch, options=options, context_templates=TEMPLATES, ledger=ledger,
        progress=False,
    )  # fmt: skip


def change(model, parameter=WEIGHT):
    return (model.get_parameter(parameter) - tiny_model(model.dtype).get_parameter(parameter)).detach()


def run(facts=FACTS, dtype=torch.float64, **options):
    """(D unrestrained, D' of PRUNE) after the same sequence of edits."""
    plain, pruned = tiny_model(dtype), tiny_model(dtype)
    inner = {name: value for name, value in options.items() if name not in ("over", "alpha")}
    edit(plain, facts, options["over"], **inner)
    edit(pruned, facts, **options)
    return change(plain), change(pruned)


BOUND = float(torch.linalg.matrix_norm(tiny_model(torch.float64).get_parameter(WEIGHT).detach(), 2))


def formula(values, alpha):
    above = torch.log(values) / math.log(alpha) - math.log(BOUND) / math.log(alpha) + BOUND
    return torch.where(values > BOUND, above, values)


@pytest.mark.parametrize("alpha", [1.2, 1.5, 3.0])
def test_singular_values_above_the_weights_largest_are_restrained_and_directions_kept(alpha):
    plain, pruned = run(FACTS[:3], over="tests.editors.test_prune:Spread", alpha=alpha, size=0.5)
    u, s, vh = torch.linalg.svd(plain, full_matrices=False)
    assert s[0] > BOUND and (s[s > 1e-6] < BOUND).any(), "some values are beyond the bound, some within"
    expected = formula(s, alpha)
    torch.testing.assert_close(pruned, (u * expected) @ vh)
    torch.testing.assert_close(torch.linalg.svdvals(pruned), expected.sort(descending=True).values)
    assert (pruned - plain).norm() > 1e-3 * plain.norm()
    if alpha == 3.0:
        assert torch.linalg.matrix_norm(pruned, 2) < s[0]


def test_the_restrained_sum_takes_the_place_of_the_sum():
    """It is applied to W₀; added to W_n it would leave D + F(D) there."""
    plain, pruned = run(FACTS[:2], over=PAIR, alpha=3.0, size=5.0)
    u, s, vh = torch.linalg.svd(plain, full_matrices=False)
    wanted = (u * formula(s, 3.0)) @ vh
    torch.testing.assert_close(pruned, wanted)
    assert (pruned - (plain + wanted)).norm() > 0.5 * plain.norm()


def test_a_sum_within_the_bound_is_left_alone_to_the_last_bit():
    plain, pruned = tiny_model(), tiny_model()
    edit(plain, FACTS[:2], PAIR, size=1e-3)
    edit(pruned, FACTS[:2], over=PAIR, size=1e-3)
    assert same_weights(pruned, weights_of(plain)) and not same_weights(pruned, weights_of(tiny_model()))


def test_over_rome_the_operations_are_romes_own(tmp_path):
    options = {"over": "rome", **ROME}
    pruned, plain = tiny_model(), tiny_model()
    ledger, romes = edit(pruned, FACTS, alpha=3.0, **options), edit(plain, FACTS, "rome", **ROME)
    for ours, theirs in zip(ledger.operations, romes.operations, strict=True):
        assert all(torch.equal(ours.deltas[WEIGHT].tensors()[k], t) for k, t in theirs.deltas[WEIGHT].tensors().items())
    assert torch.linalg.matrix_norm(change(pruned), 2) < torch.linalg.matrix_norm(change(plain), 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_prefix_resumed_or_replayed_equals_a_fresh_run(tmp_path, dtype):
    options = {"over": PAIR, "size": 2.0, "alpha": 2.5}
    fresh = {}
    for n in (1, 2, 3):
        fresh[n] = tiny_model(dtype)
        edit(fresh[n], FACTS[:n], **options)
    model = tiny_model(dtype)
    edit(model, FACTS[:2], ledger=tmp_path, **options)
    assert same_weights(model, weights_of(fresh[2]))
    resumed = tiny_model(dtype)
    ledger = edit(resumed, FACTS[:3], ledger=tmp_path, **options)
    assert same_weights(resumed, weights_of(fresh[3])), "the third edit was made on W_2, not on the restrained one"
    for n in (2, 1):
        ledger.apply(n)
        assert same_weights(resumed, weights_of(fresh[n]))
    ledger.restore()
    assert same_weights(resumed, weights_of(tiny_model(dtype)))


def test_vectors_are_not_restrained():
    model = tiny_model()
    edit(model, FACTS[:1], over="tests.editors.test_prune:WithBias", alpha=3.0, size=5.0)
    torch.testing.assert_close(change(model, BIAS), torch.full((32,), 100.0))


def test_restraint_is_continuous_and_the_identity_below_the_bound():
    bound = torch.tensor(7.0, dtype=torch.float64)
    values = torch.tensor([0.0, 3.0, 7.0, 7.0 + 1e-9, 70.0], dtype=torch.float64)
    got = restrain(values, bound, 1.2)
    torch.testing.assert_close(got[:3], values[:3])
    assert got[3] == pytest.approx(7.0) and got[4] == pytest.approx(7 + math.log(10) / math.log(1.2))


def test_a_restraint_that_enlarges_says_so_and_names_the_base_that_does_not(caplog):
    original, big = torch.eye(4), 1.5 * torch.eye(4)
    editor = Prune(PruneOptions(over=PAIR), Pair(PairOptions()))
    with caplog.at_level(logging.WARNING):
        (delta,) = editor.finish({"w": (original, big)}).values()
    assert torch.linalg.svdvals(big + delta.dense())[0] > 1.5
    assert (
        "with alpha=1.2 the restraint enlarges" in caplog.text and "from alpha=2.72 on it enlarges none" in caplog.text
    )
    caplog.clear()
    editor = Prune(PruneOptions(over=PAIR, alpha=2.72), Pair(PairOptions()))
    (delta,) = editor.finish({"w": (original, big)}).values()
    assert torch.linalg.svdvals(big + delta.dense())[0] < 1.5 and not caplog.text
    assert editor.finish({"w": (torch.zeros(4, 4), big)}) == {}, "no bound to restrain by"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1}, r"alpha=1.0: want a base of the logarithm above 1"),
        ({"over": "rect"}, r"over=rect: prune cannot change what rect computes \(both have an option over\)"),
        ({"over": "none"}, r"over=none: editor=none: no such editor"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        edit(tiny_model(), FACTS[:1], **({"over": "rome"} | options))
