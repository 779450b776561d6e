"""Schedules that edit the experts of a mixture: ledger, replay, prefixes, the methods that change another's updates."""

from __future__ import annotations

import json

import pytest
import torch

from lm_eval_edit import edit_model
from lm_eval_edit.editors.prune import restrain
from lm_eval_edit.editors.rect import top
from lm_eval_edit.editors.sphere import principal_directions
from lm_eval_edit.weights.stacked import SlicesDelta, StackedDelta
from tests.support.editors import DOWN
from tests.support.mixtures import every_routed, mixture_model
from tests.support.processes import launched
from tests.support.tiny import FACTS, TEMPLATES, same_weights, save_tiny, tiny_tokenizer, weights_of, write_facts

EXPERTS, SLICES = "tests.support.editors:Experts", "tests.support.editors:ExpertSlices"
every_kind = pytest.mark.parametrize("editor", [EXPERTS, SLICES])


def edit(model, facts=FACTS, editor=EXPERTS, batch=1, ledger=None, **options):
    return edit_model(
        model, tiny_tokenizer(), facts, editor, batch, options=options, context_templates=TEMPLATES, ledger=ledger,
        progress=False,
    )  # fmt: skip


def mixture(name="qwen3_moe", dtype=torch.float32):
    return mixture_model(name, dtype)


@every_kind
@every_routed
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_only_the_experts_named_change_and_restore_gives_every_bit_back(name, editor, dtype):
    model = mixture(name, dtype)
    kept = weights_of(model)
    ledger = edit(model, FACTS[:2], editor)
    assert [name for name, p in model.named_parameters() if not torch.equal(p, kept[name])] == [DOWN]
    changed = [i for i, one in enumerate(model.get_parameter(DOWN)) if not torch.equal(one, kept[DOWN][i])]
    assert changed == [0, 1, 2]
    assert list(ledger.weights.report()[DOWN]["slices"]) == ["0", "1", "2"]
    ledger.restore()
    assert same_weights(model, kept)


@every_kind
def test_a_stored_run_is_replayed_and_continued_to_the_bit(tmp_path, editor):
    whole, first, again = mixture(), mixture(), mixture()
    wanted = edit(whole, editor=editor).fingerprint()
    edit(first, FACTS[:2], editor, ledger=tmp_path)
    ledger = edit(again, FACTS, editor, ledger=tmp_path)
    assert same_weights(again, weights_of(whole)) and ledger.fingerprint() == wanted
    prefixes = {}
    for n in (0, 1, 2, 3, 4):
        alone = mixture()
        edit(alone, FACTS[:n], editor) if n else None
        prefixes[n] = weights_of(alone)
    for n in (4, 1, 3, 0, 2):
        ledger.apply(n)
        assert same_weights(again, prefixes[n]), f"the state after {n} operations"
    stored = json.loads((tmp_path / "ops" / "00000.json").read_text())
    assert stored["delta_norms"][DOWN] > 0 and stored["ranks"] == {DOWN: 1 if editor == EXPERTS else None}


def test_half_precision_rounds_the_sum_once():
    model = mixture(dtype=torch.bfloat16)
    exact = model.get_parameter(DOWN).detach().float().clone()
    ledger = edit(model, size=1e-3)
    for operation in ledger.operations:
        operation.deltas[DOWN].add_to_(exact)
    assert torch.equal(model.get_parameter(DOWN), exact.bfloat16())
    assert 0 < ledger.weights.report()[DOWN]["rounding_loss"] < 1


# ---------------------------------------------------------------------------- methods that change what another computes


@every_kind
@pytest.mark.parametrize("baseline", ["relative", "random", "pca"])
def test_rect_thins_out_each_expert(editor, baseline):
    plain = edit(mixture(), FACTS[:1], editor).operations[0].deltas[DOWN]
    thin = edit(mixture(), FACTS[:1], "rect", over=editor, keep=0.3, baseline=baseline).operations[0].deltas[DOWN]
    assert thin.places == plain.places and isinstance(thin, (SlicesDelta, StackedDelta))
    weight = mixture().get_parameter(DOWN).detach()
    for place in plain.places:
        before, after = plain.dense()[place], thin.dense()[place]
        if baseline == "pca":  # of rank one: nothing is left out
            torch.testing.assert_close(after, before)
            continue
        assert int((after != 0).sum()) == round(0.3 * before.numel())
        if baseline == "relative":
            torch.testing.assert_close(after, before * top((before / weight[place]).abs(), 0.3))


@every_kind
def test_the_random_control_keeps_place_and_size_of_each_expert(editor):
    plain = edit(mixture(), FACTS[:2], editor, batch=2).operations[0].deltas[DOWN]
    drawn = edit(mixture(), FACTS[:2], "random", batch=2, like=editor).operations[0].deltas[DOWN]
    assert drawn.places == plain.places and type(drawn) is type(plain)
    for place in plain.places:
        before, after = plain.dense(torch.float64)[place], drawn.dense(torch.float64)[place]
        assert float(after.norm()) == pytest.approx(float(before.norm()), rel=1e-5)
        assert abs(float((before * after).sum())) < 0.5 * float(before.norm()) ** 2
        if editor == EXPERTS:
            torch.testing.assert_close(
                torch.linalg.svdvals(after)[:2], torch.linalg.svdvals(before)[:2], rtol=1e-5, atol=0
            )


@every_kind
def test_prune_restrains_each_expert_by_its_own_matrix(editor):
    plain, pruned = mixture(dtype=torch.float64), mixture(dtype=torch.float64)
    edit(plain, editor=editor, size=1.0)
    edit(pruned, editor="prune", over=editor, size=1.0, alpha=50.0)
    original = mixture(dtype=torch.float64).get_parameter(DOWN).detach()
    for i, matrix in enumerate(original):
        change = plain.get_parameter(DOWN).detach()[i] - matrix
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
        wanted = (u * restrain(s, torch.linalg.matrix_norm(matrix, 2), 50.0)) @ vh
        torch.testing.assert_close(pruned.get_parameter(DOWN).detach()[i] - matrix, wanted, rtol=0, atol=1e-10)
    assert not torch.allclose(plain.get_parameter(DOWN), pruned.get_parameter(DOWN)), "there was something to restrain"


def test_prunes_correction_comes_off_again_before_the_next_operation():
    model, whole = mixture(), mixture()
    kept = weights_of(model)
    wanted = edit(whole, editor="prune", over=EXPERTS, size=1.0).fingerprint()
    ledger = edit(model, FACTS[:2], "prune", over=EXPERTS, size=1.0)
    assert ledger.correction
    ledger.edit(FACTS[2:])
    assert ledger.fingerprint() == wanted and same_weights(model, weights_of(whole))
    ledger.restore()
    assert same_weights(model, kept)


@every_kind
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])  # (E, d, f) and (E, f, d)
def test_sphere_keeps_each_update_off_its_experts_principal_directions(editor, name):
    plain = edit(mixture(name), FACTS[:1], editor).operations[0].deltas[DOWN].dense(torch.float64)
    options = {"over": editor, "suppression_strength": 0.8}
    found = edit(mixture(name), FACTS[:1], "sphere", **options).operations[0].deltas[DOWN]
    for place in found.places:
        turn = (lambda matrix: matrix.T) if name == "gpt_oss" else (lambda matrix: matrix)
        u = principal_directions(turn(mixture(name).get_parameter(DOWN).detach()[place]), 0.5)
        before, after = turn(plain[place]), turn(found.dense(torch.float64)[place])
        torch.testing.assert_close(after, before - 0.8 * (before @ u) @ u.T, rtol=1e-4, atol=1e-5)
        assert (before @ u).norm() > 1e-3


# ---------------------------------------------------------------------------------------------------- several processes


@pytest.mark.slow
def test_two_processes_have_the_states_of_one(tmp_path):
    save_tiny(tmp_path / "model", mixture())
    write_facts(tmp_path / "facts.jsonl")
    done = launched("tests.support.parallel_experts", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    wanted = {}
    for editor in (EXPERTS, SLICES):
        ledger = edit(mixture(), editor=editor)
        for n in (1, 4, 2, 0):
            ledger.apply(n)
            wanted.setdefault(editor, []).append(ledger.fingerprint())
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == wanted
