"""RECT, and what all editors share that wrap another one: hyper-parameters, needs, state, resume."""

from __future__ import annotations

import pytest
import torch

from lm_eval_edit import ConfigurationError, EditedHFLM, edit_model
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.hyperparameters import resolve
from lm_eval_edit.editors.rect import Rect, RectOptions
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from lm_eval_edit.weights.delta import LowRankDelta, MaskedDelta
from tests.support.editors import WEIGHT, Pair, PairOptions
from tests.support.tiny import (
    FACTS,
    LEARNABLE,
    TEMPLATES,
    same_weights,
    tiny_model,
    tiny_tokenizer,
    weights_of,
    write_facts,
)

ROME = {"layers": [1], "v_num_grad_steps": 8, "v_lr": 0.5, "v_weight_decay": 1e-3, "clamp_norm_factor": 8}
PAIR = "tests.editors.test_rect:Pair"


def edit(model, facts, editor="rect", batch=1, ledger=None, **options):
    return edit_model(
        model, tiny_tokenizer(), facts, editor, batch, options=options, context_templates=TEMPLATES, ledger=ledger,
        progress=False,
    )  # fmt: skip


def delta_of(editor, facts=LEARNABLE[:1], dtype=torch.float64, parameter=WEIGHT, **options):
    return edit(tiny_model(dtype), facts, editor, **options).operations[0].deltas[parameter]


# ----------------------------------------------------------------------------------------------------------- the method


@pytest.mark.parametrize("keep", [0.2, 0.4, 1.0])
def test_keeps_the_relatively_largest_entries_and_no_others(keep):
    weight = tiny_model(torch.float64).get_parameter(WEIGHT).detach()
    whole = delta_of("rome", **ROME).dense(torch.float64)
    kept = delta_of("rect", keep=keep, **ROME).dense(torch.float64)
    ratio = (whole / weight).abs()
    chosen = kept != 0
    assert int(chosen.sum()) == round(keep * whole.numel())
    torch.testing.assert_close(kept, whole * chosen)
    assert (whole != 0).all(), "the unregularised update changes every entry"
    if keep < 1:
        assert ratio[chosen].min() > ratio[~chosen].max()


def test_the_delta_is_stored_as_factors_and_bits():
    delta = delta_of("rect", dtype=torch.float32, **ROME)
    assert isinstance(delta, MaskedDelta) and delta.left.shape == (96, 1) and delta.left.dtype == torch.float32
    stored = sum(t.numel() * t.element_size() for t in delta.tensors().values())
    assert stored < 0.1 * 4 * 96 * 32


def test_entries_of_zero_weights_change_without_bound_and_zero_over_zero_does_not_count():
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter(WEIGHT)[:2] = 0
    context = EditContext(model, tiny_tokenizer(), Architecture.discover(model), TEMPLATES, SecondMoments())
    left = torch.ones(96, 1)
    left[1] = 0  # row 0: change over zero; row 1: zero over zero
    editor = Rect(RectOptions(keep=0.1), Pair(PairOptions()))
    dense = editor.alter(context, FACTS[:1], WEIGHT, LowRankDelta(left, torch.full((1, 32), 1e-6))).dense()
    assert dense[0].all() and not dense[1].any()


def test_the_random_baseline_keeps_as_many_entries_by_lot():
    whole = delta_of("rome", **ROME).dense(torch.float64)
    kept = [
        delta_of("rect", keep=0.25, baseline=b, **ROME).dense(torch.float64) for b in ("random", "random", "relative")
    ]
    assert torch.equal(kept[0], kept[1]), "the same seed draws the same entries"
    assert int((kept[0] != 0).sum()) == round(0.25 * whole.numel()) and not torch.equal(kept[0], kept[2])
    torch.testing.assert_close(kept[0], whole * (kept[0] != 0))
    other = delta_of("rect", LEARNABLE[1:], keep=0.25, baseline="random", **ROME).dense(torch.float64)
    assert not torch.equal(other != 0, kept[0] != 0), "another fact draws others"


def test_the_pca_baseline_is_a_projection_onto_the_leading_directions():
    def pair(editor, **options):
        model = tiny_model()
        return edit(model, FACTS[:3], editor, 3, **options).operations[0].deltas[WEIGHT].dense(torch.float64)

    whole, projected = pair(PAIR), pair("rect", over=PAIR, baseline="pca", keep=0.5)
    u, s, vh = torch.linalg.svd(whole, full_matrices=False)
    assert int((s > 1e-6 * s[0]).sum()) == 3
    torch.testing.assert_close(projected, (u[:, :2] * s[:2]) @ vh[:2], rtol=1e-4, atol=1e-6)  # ⌈0.5 · 3⌉ = 2
    directions = vh[:2].T @ vh[:2]
    torch.testing.assert_close(projected @ directions, projected, rtol=1e-4, atol=1e-6)
    assert (whole @ directions - whole).norm() > 0.1 * whole.norm(), "the whole update was not in their span"


@pytest.mark.parametrize("baseline", ["relative", "random", "pca"])
def test_sparse_and_dense_updates_are_thinned_out_too(baseline):
    name = "tests.support.editors:Slices"
    for parameter in (WEIGHT, "transformer.h.1.mlp.c_proj.bias"):
        whole = delta_of(name, dtype=torch.float32, parameter=parameter).dense()
        keep = 0.01 if whole.ndim == 2 else 0.5
        options = {"over": name, "keep": keep, "baseline": baseline}
        kept = delta_of("rect", dtype=torch.float32, parameter=parameter, **options).dense()
        if baseline == "pca" and whole.ndim == 1:
            assert torch.equal(kept, whole)  # a vector has no directions to choose from
        else:
            assert (kept * (whole == 0)).abs().max() < 1e-6 and (kept - whole).norm() > 0.01 * whole.norm()
        if baseline == "relative":
            assert int((kept != 0).sum()) == (31 if whole.ndim == 2 else 16)


def test_the_edit_is_applied_and_restored_bit_for_bit():
    model = tiny_model(torch.bfloat16)
    kept = weights_of(model)
    ledger = edit(model, LEARNABLE, **ROME)
    assert not same_weights(model, kept)
    ledger.restore()
    assert same_weights(model, kept)


# ----------------------------------------------------------------------------------- what wrapping another editor means


def test_one_mapping_serves_both_editors_and_the_preset_is_the_inner_ones():
    from transformers import GPT2Config

    found, problems = resolve(Rect, GPT2Config(n_embd=1600, n_layer=48), {"keep": 0.2, "v_lr": "1e-1"})
    assert not problems and found.preset == "gpt2-xl"
    described = found.editor.describe()
    assert (described["keep"], described["v_lr"], described["layers"], described["over"]) == (0.2, 0.1, (17,), "rome")
    assert found.editor.layers() == [17] and found.editor.template_plan().length_params == ((5, 10), (10, 10))
    found, problems = resolve(
        Rect, GPT2Config(n_embd=1600, n_layer=48), {"alg_name": "ROME", "mom2_adjustment": True}, (3,)
    )
    assert not problems and found.editor.layers() == found.editor.needs_second_moments() == [3]
    found, _ = resolve(Rect, GPT2Config(n_embd=8, n_layer=10), {})
    assert "chosen by relative depth" in found.notices[0]


@pytest.mark.parametrize("model_args", [{"over": PAIR, "size": 0.3}, {"edit_config": {"over": PAIR}, "size": 0.3}])
def test_model_args_carry_the_options_of_both(tmp_path, model_args):
    facts = tmp_path / "facts.jsonl"
    write_facts(facts)
    lm = EditedHFLM(
        tiny_model(), tokenizer=tiny_tokenizer(), device="cpu", editor="rect", n_edits=3, edit_batch_size=3,
        edit_dataset=str(facts), keep=0.3, **model_args,
    )  # fmt: skip
    record = lm.edit_record()
    assert record["options"] == {"over": PAIR, "keep": 0.3, "baseline": "relative", "layers": (1,), "size": 0.3}
    assert record["dataset"]["skipped"] == [{"id": "3", "reason": "it is Rosa's"}]
    (delta,) = lm.ledger.operations[0].deltas.values()
    assert isinstance(delta, MaskedDelta) and delta.left.shape == (96, 3)


def test_stopped_and_resumed_equals_uninterrupted_with_the_inner_editors_state(tmp_path):
    options = {"over": PAIR, "keep": 0.3, "baseline": "random"}
    whole = tiny_model()
    edit(whole, FACTS[:3], batch=2, **options)
    edit(tiny_model(), FACTS[:2], batch=2, ledger=tmp_path, **options)
    resumed = tiny_model()
    ledger = edit(resumed, FACTS[:3], batch=2, ledger=tmp_path, **options)
    assert same_weights(resumed, weights_of(whole))
    assert all(operation.state["sum"] > 0 for operation in ledger.operations)
    alone = tiny_model()
    edit(alone, FACTS[2:3], **options)
    second = ledger.operations[1].deltas[WEIGHT]
    first_state = ledger.operations[0].state["sum"]
    expected = edit(tiny_model(), FACTS[2:3], PAIR).operations[0].deltas[WEIGHT].left * (0.1 + first_state) / 0.1
    torch.testing.assert_close(second.left, expected)  # the state of the first operation reached the second


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({"keep": 0}, 1, r"keep=0.0: want a share above 0 and at most 1"),
        ({"keep": 40}, 1, r"keep=40.0: want a share"),
        ({"baseline": "svd"}, 1, r"baseline='svd': want relative, random, pca"),
        ({"over": "rmoe"}, 1, r"over=rmoe: editor=rmoe: no such editor. Did you mean 'rome'"),
        ({"over": "rect"}, 1, r"over=rect: rect cannot change what rect computes \(it is the same method\)"),
        ({"over": "prune"}, 1, r"over=prune: "),
        (
            {"kep": 0.1},
            1,
            r"kep: no hyper-parameter of rect. Did you mean 'keep'\? It has over, keep, baseline, layers",
        ),
        ({"v_lrr": 0.1}, 1, r"v_lrr: no hyper-parameter of rect. Did you mean 'v_lr'"),
        ({"alg_name": "MEMIT"}, 1, r"the hyper-parameters are for MEMIT, the editor is rome"),
        ({"fact_token": "last"}, 1, r"only 'subject_last' is supported"),
        ({"layers": [7]}, 1, r"layer 7 is out of range"),
        ({"mom2_adjustment": True}, 1, r"needs the second moments of transformer.h.1.mlp.c_proj.*mom2_adjustment"),
        ({}, 2, r"edit_batch_size=2: rect of rome edits one fact at a time"),
        ({"over": PAIR, "facts": FACTS}, 2, r"fact 3: it is Rosa's"),
    ],
)
def test_wrong_configurations_have_their_message(options, batch, message):
    from lm_eval_edit import UserError

    model = tiny_model()
    kept = weights_of(model)
    options = dict(options)
    facts = options.pop("facts", LEARNABLE)
    base = {} if "Pair" in str(options.get("over")) else {"layers": [1]}
    with pytest.raises((ConfigurationError, UserError), match=message):
        edit(model, facts, batch=batch, **(base | options))
    assert same_weights(model, kept)
