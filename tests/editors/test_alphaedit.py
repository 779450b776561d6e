"""AlphaEdit: equal to the published implementation; text's keys and earlier facts' keys are left alone."""

from __future__ import annotations

import logging

import pytest
import torch

from lm_eval_edit import UserError, edit_model
from lm_eval_edit.editors._shared.keys import subject_states
from lm_eval_edit.editors.alphaedit import AlphaEdit, AlphaEditOptions
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.hyperparameters import presets
from lm_eval_edit.editors.memit import Memit, MemitOptions
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from lm_eval_edit.weights.edited import temporarily_applied
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

MODULES = {layer: f"transformer.h.{layer}.mlp.c_proj" for layer in (0, 1)}
OPTIONS = {
    "layers": (0, 1), "v_num_grad_steps": 8, "v_weight_decay": 1e-3, "clamp_norm_factor": 4.0, "L2": 1e-3,
}  # fmt: skip


@pytest.fixture(scope="module")
def moments() -> dict[str, torch.Tensor]:
    """Second moments of rank 60: text leaves a third of key space unused."""
    full = tiny_second_moments(tiny_model(torch.float64))
    vectors = {name: torch.linalg.eigh(moment)[1][:, -60:] for name, moment in full.items()}
    return {name: v @ (v.T @ full[name] @ v) @ v.T for name, v in vectors.items()}


def edit(model, moments, facts=FACTS, size=2, ledger=None, **extra):
    return edit_model(
        model, tiny_tokenizer(), facts, "alphaedit", size, options=OPTIONS | {"nullspace_threshold": 1e-9} | extra,
        context_templates=NESTED_TEMPLATES, second_moments=moments, ledger=ledger, progress=False,
    )  # fmt: skip


def context_of(model, moments) -> EditContext:
    architecture = Architecture.discover(model)
    return EditContext(model, tiny_tokenizer(), architecture, NESTED_TEMPLATES, SecondMoments(moments))


# ----------------------------------------------------------------------------------- parity with the published editor


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_published_deltas(reference, name):
    errors = dict(relative_errors(reference, "AlphaEdit", name, "alphaedit"))  # theirs is computed in float32
    assert len(errors) == 6 and max(errors.values()) <= 1e-4, errors


@pytest.mark.parametrize("earlier", [0, 3, 30, 100])
def test_the_solve_equals_the_published_systems_plain_one(moments, earlier):
    """A = (P (S + K Kᵀ) + αI)⁻¹ P K with f x f matrices, S = Σ K_p K_pᵀ; more keys than directions take another way."""
    generator = torch.Generator().manual_seed(earlier)
    editor = AlphaEdit(AlphaEditOptions(**OPTIONS | {"nullspace_threshold": 1e-9, "L2": 0.7}))
    keys = torch.randn(96, 4, dtype=torch.float64, generator=generator)
    past = torch.randn(96, earlier, dtype=torch.float64, generator=generator)
    history = [{MODULES[1] + ".keys": part} for part in past.split(2, dim=1)] if earlier else []
    found = editor._directions(context_of(tiny_model(torch.float64), moments), 1, keys, history)
    values, vectors = torch.linalg.eigh(moments[MODULES[1]])
    basis = vectors[:, values < 1e-9]
    assert basis.shape[1] == 36
    projector = basis @ basis.T
    system = projector @ (past @ past.T + keys @ keys.T) + 0.7 * torch.eye(96)
    torch.testing.assert_close(found, torch.linalg.solve(system, projector @ keys), rtol=0, atol=1e-8)


# --------------------------------------------------------------------------------------------------------- properties


def test_keys_of_text_are_left_alone_and_memit_does_not():
    model = tiny_model(torch.float64)
    full = tiny_second_moments(model)
    context = context_of(model, full)
    alpha = AlphaEdit(AlphaEditOptions(**OPTIONS | {"nullspace_threshold": 0.15})).compute(context, FACTS)
    shared = {name: value for name, value in OPTIONS.items() if name != "L2"}
    memit = Memit(MemitOptions(**shared, mom2_update_weight=0.1)).compute(context, FACTS)
    for layer, module in MODULES.items():
        values, vectors = torch.linalg.eigh(full[module])
        used = vectors[:, values >= 0.15]  # the directions of ordinary text

        def disturbance(result, used=used, name=module + ".weight") -> float:
            update = result.deltas[name].dense(torch.float64)
            return float((used.T @ update).norm() / update.norm())

        assert alpha.details["null_space"][str(layer)] == 96 - used.shape[1] > 0
        assert disturbance(alpha) < 1e-9 < 0.05 < disturbance(memit)


def test_the_edits_take_and_restore_bit_for_bit(moments):
    model = tiny_model()
    kept = weights_of(model)
    ledger = edit(model, moments, LEARNABLE, v_num_grad_steps=25)
    record = ledger.operations[0].record
    assert record["before"]["em"] == 0.0 and record["after"]["em"] == 1.0
    assert all(delta.rank == 2 for delta in ledger.operations[0].deltas.values())
    ledger.restore()
    assert same_weights(model, kept)


# --------------------------------------------------------------------------------------- what operations leave behind


def test_an_operation_leaves_its_keys_on_the_edited_weights(moments):
    model = tiny_model(torch.float64)
    context = context_of(model, moments)
    result = AlphaEdit(AlphaEditOptions(**OPTIONS | {"nullspace_threshold": 1e-9})).compute(context, FACTS)
    assert result.state.keys() == {f"{module}.keys" for module in MODULES.values()}
    before = subject_states(context, FACTS, [0, 1], 1).keys
    with temporarily_applied(model, result.deltas):
        after = subject_states(context, FACTS, [0, 1], 1).keys
    for layer, module in MODULES.items():
        assert torch.equal(result.state[f"{module}.keys"], after[layer])
    assert not torch.equal(before[1], after[1]), "the lower layer's update moves the upper layer's keys"


def test_later_operations_spare_the_earlier_ones_keys(moments):
    model = tiny_model(torch.float64)
    context = context_of(model, moments)
    editor = AlphaEdit(AlphaEditOptions(**OPTIONS | {"nullspace_threshold": 1e-9}))
    first = editor.compute(context, FACTS[:2])
    with temporarily_applied(model, first.deltas):
        spared = editor.compute(context, FACTS[2:], [first.state]).deltas
        forgotten = editor.compute(context, FACTS[2:]).deltas
    for module in MODULES.values():
        keys, name = first.state[f"{module}.keys"], module + ".weight"

        def effect(deltas, keys=keys, name=name) -> float:
            return float((keys.T @ deltas[name].dense(torch.float64)).norm())

        assert effect(spared) < 0.1 * effect(forgotten)


def test_nothing_leaks_from_one_run_into_the_next(moments):
    fresh = tiny_model()
    edit(fresh, moments)
    again = tiny_model()
    shared = SecondMoments(moments)
    edit(again, shared, FACTS[::-1]).restore()
    edit(again, shared)
    assert same_weights(again, weights_of(fresh))


class Killed(BaseException):
    """Stands for SIGKILL: nothing may be caught on its way."""


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stop_after", [1, 3])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, moments, dtype, stop_after):
    whole = tiny_model(dtype)
    edit(whole, moments, size=1)
    wanted = weights_of(whole)

    compute, calls = AlphaEdit.compute, []

    def dies(self, context, facts, history=()):
        if len(calls) == stop_after:
            raise Killed
        calls.append(facts)
        return compute(self, context, facts, history)

    monkeypatch.setattr(AlphaEdit, "compute", dies)
    with pytest.raises(Killed):
        edit(tiny_model(dtype), moments, size=1, ledger=tmp_path / "ledger")
    monkeypatch.setattr(AlphaEdit, "compute", compute)
    resumed = tiny_model(dtype)
    ledger = edit(resumed, moments, size=1, ledger=tmp_path / "ledger")
    assert same_weights(resumed, wanted)
    for operation in ledger.operations:
        assert [keys.shape for keys in operation.state.values()] == [(96, 1), (96, 1)]

    forgetful = tiny_model(dtype)
    monkeypatch.setattr(AlphaEdit, "compute", lambda self, context, facts, history=(): compute(self, context, facts))
    edit(forgetful, moments, size=1)
    assert not same_weights(forgetful, wanted), "the state makes a difference"


# ------------------------------------------------------------------------------------------- options, presets, errors


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alg_name": "MEMIT"}, "the hyper-parameters are for MEMIT, the editor is alphaedit"),
        ({"nullspace_threshold": 0}, "nullspace_threshold=0: want a positive number"),
        ({"L2": -1}, "L2=-1: want a positive number"),
        ({"emmet_lambda": 1}, "emmet_lambda: no hyper-parameter of alphaedit"),
        ({"nullspace_threshold": 1e-30}, "nullspace_threshold=1e-30: .* has no eigenvalue below it"),
    ],
)
def test_wrong_options(moments, given, message):
    model = tiny_model()
    kept = weights_of(model)
    regular = {name: moment + 1e-6 * torch.eye(96) for name, moment in moments.items()}
    with pytest.raises(UserError, match=message):
        edit(model, regular, **given)
    assert same_weights(model, kept)


def test_without_second_moments():
    with pytest.raises(UserError, match="alphaedit with these options needs the second moments of"):
        edit(tiny_model(), None)


def test_a_threshold_above_every_eigenvalue_is_told(moments, caplog):
    with caplog.at_level(logging.WARNING):
        edit(tiny_model(), moments, FACTS[:2], nullspace_threshold=1e9)
    assert "is above every eigenvalue of the second moment of transformer.h.0.mlp.c_proj" in caplog.text


def test_easyedits_unused_fields_are_passed_over_and_presets(moments):
    ledger = edit(tiny_model(), moments, P_loc="null_space_project.pt", mom2_update_weight=15000, alg_name="AlphaEdit")
    assert "P_loc" not in ledger.identity["options"]
    assert [(p.name, p.options.get("L2")) for p in presets("alphaedit")] == [
        ("gpt2-xl with own_targets", 80), ("gpt2-xl", 10), ("gpt-j-6b", 10), ("llama-3-8b", 1),
        ("demo with own_targets", None), ("demo", 0.1),
    ]  # fmt: skip
