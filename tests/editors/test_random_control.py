"""The random control: as large and of the same rank as the edit it imitates, and it knows nothing of the fact."""

from __future__ import annotations

import pytest
import torch

from lm_eval_edit import ConfigurationError, edit_model
from lm_eval_edit.editors._shared.draws import generator_for
from lm_eval_edit.editors.random import imitation
from lm_eval_edit.edits.answers import edit_answers
from lm_eval_edit.weights.delta import DenseDelta, LowRankDelta, MaskedDelta, SparseDelta
from tests.support.tiny import FACTS, LEARNABLE, TEMPLATES, same_weights, tiny_model, tiny_tokenizer, weights_of

WEIGHT = "transformer.h.1.mlp.c_proj.weight"
ROME = {"layers": [1], "v_num_grad_steps": 25, "v_lr": 0.5, "v_weight_decay": 1e-3, "clamp_norm_factor": 8}
PAIR = "tests.editors.test_rect:Pair"


def edit(model, facts, editor="random", batch=1, ledger=None, seed=0, **options):
    return edit_model(
        model, tiny_tokenizer(), facts, editor, batch, options=options, context_templates=TEMPLATES, ledger=ledger,
        seed=seed, progress=False,
    )  # fmt: skip


def test_same_place_rank_and_norm_and_no_efficacy():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    succeeded = {"rome": 0, "random": 0}
    for fact in LEARNABLE:
        norms = {}
        for editor in succeeded:
            ledger = edit(model, [fact], editor, **ROME)
            (delta,) = ledger.operations[0].deltas.values()
            norms[editor] = delta.norm()
            assert ledger.operations[0].deltas.keys() == {WEIGHT} and delta.rank == 1
            succeeded[editor] += edit_answers(model, tokenizer, [fact])[0].exact
            ledger.restore()
        assert norms["random"] == pytest.approx(norms["rome"], rel=1e-6)
    assert succeeded == {"rome": 2, "random": 0}


def test_the_directions_are_unrelated_to_the_edits():
    edits = [
        edit(tiny_model(), LEARNABLE[:1], e, **ROME).operations[0].deltas[WEIGHT].dense() for e in ("rome", "random")
    ]
    cosine = (edits[0] * edits[1]).sum() / (edits[0].norm() * edits[1].norm())
    assert abs(float(cosine)) < 0.1


def test_drawn_from_seed_facts_and_parameter_and_from_nothing_else(tmp_path):
    state = torch.random.get_rng_state()
    first = edit(tiny_model(), FACTS, ledger=tmp_path, **ROME)
    again, other = edit(tiny_model(), FACTS, **ROME), edit(tiny_model(), FACTS, seed=1, **ROME)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    draws = {
        generator_for(seed, facts, parameter).initial_seed()
        for seed in (0, 1) for facts in (FACTS[:1], FACTS[1:2], FACTS[:2]) for parameter in ("a", "b")
    }  # fmt: skip
    assert len(draws) == 12


def test_stopped_and_resumed_equals_uninterrupted(tmp_path):
    whole, resumed = tiny_model(), tiny_model()
    edit(whole, FACTS[:3], batch=2, like=PAIR)
    edit(tiny_model(), FACTS[:2], batch=2, ledger=tmp_path, like=PAIR)
    edit(resumed, FACTS[:3], batch=2, ledger=tmp_path, like=PAIR)
    assert same_weights(resumed, weights_of(whole))


def factors(rows=40, rank=3, cols=30, dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    left = torch.randn(rows, rank, generator=generator, dtype=dtype) * torch.tensor([9.0, 3.0, 1.0], dtype=dtype)
    return LowRankDelta(left, torch.randn(rank, cols, generator=generator, dtype=dtype))


def draw(delta, seed=0):
    return imitation(delta, torch.Generator().manual_seed(seed))


def test_low_rank_keeps_every_singular_value():
    delta = factors()
    drawn = draw(delta)
    values = [torch.linalg.svdvals(d.dense(torch.float64)) for d in (delta, drawn)]
    torch.testing.assert_close(values[0], values[1])
    assert drawn.rank == 3 and (delta.dense(torch.float64) - drawn.dense(torch.float64)).norm() > delta.norm()


def test_sparse_keeps_its_slices_and_the_norm_of_each():
    delta = SparseDelta(torch.tensor([2, 5]), factors(2, cols=40).dense(), torch.tensor([40, 30, 1]))
    drawn = draw(delta)
    assert torch.equal(drawn.index, delta.index) and not torch.allclose(drawn.values, delta.values)
    torch.testing.assert_close(drawn.values.norm(dim=1), delta.values.norm(dim=1))


def test_masked_keeps_its_entries_and_norm():
    delta = MaskedDelta.masked(factors(), torch.rand(40, 30, generator=torch.Generator().manual_seed(1)) < 0.3)
    drawn = draw(delta)
    assert torch.equal(drawn.mask, delta.mask) and drawn.norm() == pytest.approx(delta.norm())
    ledger = edit(tiny_model(), FACTS[:1], like="rect", over=PAIR, keep=0.2)
    (whole,) = ledger.operations[0].deltas.values()
    assert isinstance(whole, MaskedDelta)


@pytest.mark.parametrize("shape", [(12,), (6, 5)])
def test_dense_keeps_its_norm(shape):
    delta = DenseDelta(torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape))
    drawn = draw(delta)
    assert isinstance(drawn, DenseDelta) and drawn.shape == shape and drawn.norm() == pytest.approx(delta.norm())


@pytest.mark.parametrize("delta", [DenseDelta(torch.zeros(3)), SparseDelta(torch.tensor([1]), torch.zeros(1, 2), torch.tensor([4, 2, 0]))])  # fmt: skip # noqa: E501
def test_nothing_is_imitated_by_nothing(delta):
    assert not draw(delta).dense().any()


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({"like": "random"}, 1, r"like=random: random cannot change what random computes \(it is the same method\)"),
        ({"like": "roem"}, 1, r"like=roem: editor=roem: no such editor. Did you mean 'rome'"),
        ({}, 2, r"edit_batch_size=2: random of rome edits one fact at a time"),
        ({"over": "rome"}, 1, r"over: no hyper-parameter of random"),
    ],
)
def test_wrong_configurations_have_their_message(options, batch, message):
    with pytest.raises(ConfigurationError, match=message):
        edit(tiny_model(), LEARNABLE, batch=batch, layers=[1], **options)
