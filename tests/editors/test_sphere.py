"""SPHERE: another editor's update, all of it but a share of what falls on the principal directions of the weights."""

from __future__ import annotations

import json

import pytest
import torch

from lm_eval_edit import ConfigurationError, EditedHFLM, edit_model
from lm_eval_edit.cost.editing import innermost
from lm_eval_edit.editors.base import find_editor
from lm_eval_edit.editors.hyperparameters import resolve
from lm_eval_edit.editors.sphere import principal_directions, projected
from lm_eval_edit.export import export
from lm_eval_edit.weights.delta import DenseDelta, LowRankDelta, MaskedDelta, SparseDelta
from tests.support.tiny import (
    FACTS,
    LEARNABLE,
    NESTED_TEMPLATES,
    TEMPLATES,
    same_weights,
    tiny_llama,
    tiny_model,
    tiny_second_moments,
    tiny_tokenizer,
    weights_of,
)

ROME = {"layers": [1], "v_num_grad_steps": 8, "v_lr": 0.5, "v_weight_decay": 1e-3, "clamp_norm_factor": 8}
MEMIT = {"layers": [0, 1], "v_num_grad_steps": 4, "mom2_update_weight": 0.1}
ALPHAEDIT = {"layers": [0, 1], "v_num_grad_steps": 4, "nullspace_threshold": 0.1, "L2": 0.01}
PAIR = "tests.editors.test_rect:Pair"


def edit(model, facts=FACTS[:2], editor="sphere", batch=1, ledger=None, **options):
    nested = (options.get("over", "alphaedit") if editor == "sphere" else editor) in ("memit", "alphaedit")
    moments = tiny_second_moments(tiny_model(torch.float64)) if nested else None
    return edit_model(
        model, tiny_tokenizer(), facts, editor, batch, options=options, second_moments=moments, ledger=ledger,
        context_templates=NESTED_TEMPLATES if nested else TEMPLATES, progress=False,
    )  # fmt: skip


def as_maps(model, deltas):
    """{parameter: Δ (d, f) as a map from keys, and W likewise}."""
    turned = {n: isinstance(model.get_submodule(n.rpartition(".")[0]), torch.nn.Linear) for n in deltas}
    return {
        n: tuple(t if turned[n] else t.T for t in (d.dense(torch.float64), model.get_parameter(n).detach()))
        for n, d in deltas.items()
    }


def principal(weight, share):
    """U by the definition: all of ŴᵀŴ / d, one eigenvector after another."""
    rows = torch.stack([row / row.norm() for row in weight])
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    order, r = values.argsort(descending=True), 0
    while r < len(values) and values[order[: r + 1]].sum() / values.sum() <= share:
        r += 1
    return vectors[:, order[: r + 1]]


# ----------------------------------------------------------------------------------------------------------- the method


@pytest.mark.parametrize("make", [tiny_model, tiny_llama])
@pytest.mark.parametrize(("share", "strength"), [(0.5, 0.8), (0.5, 1.0), (0.2, 0.3), (0.0, 0.5)])
def test_what_falls_on_principal_directions_shrinks_by_the_strength_and_nothing_else_changes(make, share, strength):
    options = {"cumulative_ratio": share, "suppression_strength": strength}
    whole = edit(make(torch.float64), FACTS[:1], "rome", **ROME).operations[0].deltas
    kept = edit(make(torch.float64), FACTS[:1], over="rome", **ROME, **options).operations[0].deltas
    model = make(torch.float64)
    for name, (after, weight) in as_maps(model, kept).items():
        before = as_maps(model, whole)[name][0]
        u = principal(weight, share)
        assert 1 <= u.shape[1] < 32 and (before @ u).norm() > 1e-3 * before.norm()
        assert (after @ u - (1 - strength) * before @ u).norm() <= 1e-12 * before.norm()
        beside = torch.eye(96, dtype=torch.float64) - u @ u.T
        assert ((after - before) @ beside).norm() <= 1e-12 * before.norm()
        assert (after - before).norm() > 1e-3 * before.norm(), "it does change the update"
        other = torch.linalg.svd(weight)[2][: u.shape[1]].T  # without the rows' lengths made one
        assert (after @ other - (1 - strength) * before @ other).norm() > 1e-6 * before.norm()


@pytest.mark.parametrize("shape", [(32, 96), (96, 32), (40, 40)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_the_directions_are_those_of_the_definition_from_either_side(shape, share):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.logspace(
        0, -3, shape[1], dtype=torch.float64
    )
    found, wanted = principal_directions(weight, share), principal(weight, share)
    count = min(wanted.shape[1], *shape)
    assert found.shape[1] <= count and (found.shape[1] == count or share == 1.0)
    torch.testing.assert_close(found.T @ found, torch.eye(found.shape[1], dtype=torch.float64))
    if share < 1:
        torch.testing.assert_close(found @ found.T, wanted @ wanted.T, rtol=1e-8, atol=1e-8)


def test_the_weight_is_the_present_one_and_not_the_unedited_one():
    options = {"over": PAIR, "size": 3.0, "suppression_strength": 1.0}
    model = tiny_model(torch.float64)
    ledger = edit(model, FACTS[:2], **options)
    (name,) = ledger.operations[1].deltas
    ledger.apply(1)
    present = model.get_parameter(name).detach().T
    change = ledger.operations[1].deltas[name].dense(torch.float64).T
    first = principal(tiny_model(torch.float64).get_parameter(name).detach().T, 0.5)
    assert (change @ principal(present, 0.5)).norm() <= 1e-6 * change.norm() < (change @ first).norm()


def test_the_published_strength_depends_on_the_editor_it_is_over():
    for over, more, strength in (
        ("alphaedit", {}, 0.5), ("rome", {}, 0.8), ("memit", {}, 0.8), ("memit", {"suppression_strength": "0.3"}, 0.3)
    ):  # fmt: skip
        resolved, problems = resolve(find_editor("sphere"), tiny_model().config, {"over": over, **more})
        assert not problems and resolved.editor.describe()["suppression_strength"] == strength
    resolved, _ = resolve(find_editor("sphere"), tiny_model().config, {})
    assert resolved.editor.inner.name == "alphaedit" and innermost("sphere", {}) == "alphaedit"


def test_every_kind_of_update_is_projected_and_factors_keep_their_rank():
    generator = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(12, 3, generator=generator, dtype=torch.float64)).Q
    left, right = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((7, 2), (2, 12)))
    low = LowRankDelta(left, right)
    deltas = [
        low,
        DenseDelta(left @ right),
        MaskedDelta.masked(low, torch.rand(7, 12, generator=generator) > 0.5),
        SparseDelta(torch.tensor([1, 5]), torch.randn(2, 12, generator=generator).double(), torch.tensor([7, 12, 0])),
        SparseDelta(torch.tensor([3, 4]), torch.randn(2, 7, generator=generator).double(), torch.tensor([7, 12, 1])),
    ]
    for delta in deltas:
        before = delta.dense(torch.float64)
        after = projected(delta, u, 0.8, transposed=False)
        torch.testing.assert_close(after.dense(torch.float64), before - 0.8 * before @ u @ u.T, rtol=1e-6, atol=1e-6)
        turned = DenseDelta(before.T.contiguous())
        torch.testing.assert_close(
            projected(turned, u, 0.8, transposed=True).dense(torch.float64).T, before - 0.8 * before @ u @ u.T
        )
    assert projected(low, u, 0.8, transposed=False).rank == 2


def test_vectors_are_left_alone():
    options = {"over": "ft", "layers": [1], "num_steps": 3, "lr": 1e-3}
    plain = edit(tiny_model(), editor="ft", **{n: v for n, v in options.items() if n != "over"})
    ledger = edit(tiny_model(), **options)
    bias = "transformer.h.1.mlp.c_proj.bias"
    first, second = (x.operations[0].deltas for x in (plain, ledger))
    assert torch.equal(first[bias].value, second[bias].value)
    name = bias.replace("bias", "weight")
    assert not torch.equal(first[name].dense(), second[name].dense())


# -------------------------------------------------------------------------------------------- schedules, files, engines


def test_a_stopped_run_goes_on_to_the_bit_with_the_inner_editors_state(tmp_path):
    fresh = tiny_model()
    edit(fresh, FACTS, over="alphaedit", batch=2, **ALPHAEDIT)
    edit(tiny_model(), FACTS[:2], over="alphaedit", batch=2, ledger=tmp_path, **ALPHAEDIT)
    resumed = tiny_model()
    ledger = edit(resumed, FACTS, over="alphaedit", batch=2, ledger=tmp_path, **ALPHAEDIT)
    assert same_weights(resumed, weights_of(fresh)) and "closed" not in ledger.operations[0].record["details"]
    assert any(name.endswith(".keys") for name in ledger.operations[0].state)
    ledger.restore()
    assert same_weights(resumed, weights_of(tiny_model()))


def test_the_stock_command_and_a_low_rank_export(tmp_path):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    facts = tmp_path / "facts.jsonl"
    facts.write_text("".join(json.dumps(fact.record()) + "\n" for fact in LEARNABLE))
    lm = EditedHFLM(
        pretrained=str(folder), editor="sphere", n_edits=2, edit_dataset=str(facts), device="cpu", over="rome",
        edit_config=ROME | {"context_templates": list(TEMPLATES)}, edit_ledger=str(tmp_path / "ledger"),
    )  # fmt: skip
    record = lm.edit_record()
    assert record["editor"] == "sphere" and record["options"]["suppression_strength"] == 0.8
    export(tmp_path / "ledger", "peft", tmp_path / "adapter", device="cpu")  # checks itself against the edited model


def test_easyedits_file_is_read_as_it_is():
    given = {
        "alg_name": "SPHERE", "model_name": "gpt2", "stats_dir": "stats", "P_loc": "p.pt", "device": 0, "layers": [1],
        "clamp_norm_factor": 0.75, "layer_selection": "all", "fact_token": "subject_last", "v_num_grad_steps": 25,
        "v_lr": "5e-1", "v_loss_layer": 2, "v_weight_decay": 0.5, "kl_factor": 0.0625, "mom2_adjustment": True,
        "mom2_update_weight": 15000, "nullspace_threshold": "2e-2", "L2": 10, "cumulative_ratio": 0.5,
        "suppression_strength": 0.5,
    }  # fmt: skip
    resolved, problems = resolve(find_editor("sphere"), tiny_model().config, given)
    assert not problems and resolved.editor.inner.options.L2 == 10 and resolved.editor.options.over == "alphaedit"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cumulative_ratio": 1.5}, r"cumulative_ratio=1.5: want a share from 0"),
        ({"suppression_strength": 0}, r"suppression_strength=0: want a number above 0"),
        ({"suppression_strength": "much"}, r"suppression_strength='much': want a number above 0"),
        ({"over": "rect"}, r"over=rect: sphere cannot change what rect computes \(both have an option over\)"),
        ({"over": "sphere"}, r"over=sphere: sphere cannot change what sphere computes \(it is the same method\)"),
        ({"strength": 0.5}, r"strength: no hyper-parameter of sphere.*suppression_strength"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        edit(tiny_model(), FACTS[:1], **({"over": "rome"} | options))
