"""memit_seq and ENCORE: batches one after another are one batch of all; each option does what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lm_eval_edit import UserError, edit_model
from lm_eval_edit.editors._shared.earlier_keys import keys_name
from lm_eval_edit.editors._shared.history import History
from lm_eval_edit.editors._shared.inverse_root import InverseRoot
from lm_eval_edit.editors._shared.keys import subject_states
from lm_eval_edit.editors.alphaedit import AlphaEdit, AlphaEditOptions
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.encore import Encore, EncoreOptions
from lm_eval_edit.editors.hyperparameters import presets
from lm_eval_edit.editors.memit import Memit, MemitOptions
from lm_eval_edit.editors.memit_seq import MemitSeq, MemitSeqOptions
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from lm_eval_edit.weights.edited import temporarily_applied
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
    "layers": (0, 1), "v_num_grad_steps": 8, "v_lr": 0.5, "v_weight_decay": 1e-3, "clamp_norm_factor": 4.0,
    "mom2_update_weight": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def moments() -> dict[str, torch.Tensor]:
    return tiny_second_moments(tiny_model(torch.float64))


def context_of(model, moments) -> EditContext:
    return EditContext(model, tiny_tokenizer(), Architecture.discover(model), NESTED_TEMPLATES, SecondMoments(moments))


def edit(model, moments, facts=FACTS, size=1, editor="memit_seq", ledger=None, **extra):
    return edit_model(
        model, tiny_tokenizer(), facts, editor, size, options=OPTIONS | extra, context_templates=NESTED_TEMPLATES,
        second_moments=moments, ledger=ledger, progress=False,
    )  # fmt: skip


def seq(**extra) -> MemitSeq:
    return MemitSeq(MemitSeqOptions(**OPTIONS | extra))


# ------------------------------------------------------------------------------------------- one after another, at once


def frozen(editor, context, batches, keep_state=True):
    """W (f, d) after batches (K, Z) one after another, targets and keys frozen: R = Z − W_nowᵀK."""
    weight, history = torch.zeros(96, 5, dtype=torch.float64), History()
    for keys, values in batches:
        weight = weight + editor._directions(context, 1, keys, history) @ (values - keys.T @ weight)
        if keep_state:
            history.append({keys_name(MODULES[1]): keys})
    return weight


def batches_of(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(96, n, dtype=torch.float64, generator=generator),
         torch.randn(n, 5, dtype=torch.float64, generator=generator))
        for n in sizes
    ]  # fmt: skip


@pytest.mark.parametrize("sizes", [[1] * 40, [3, 1, 7], [10] * 6, [30, 150, 5]], ids=str)
def test_batches_one_after_another_are_one_batch_of_all_and_with_memit_they_are_not(moments, sizes):
    context = context_of(tiny_model(torch.float64), moments)
    batches = batches_of(sizes)
    at_once = [tuple(torch.cat(parts, dim=1 - i) for i, parts in enumerate(zip(*batches, strict=True)))]
    wanted = frozen(seq(), context, at_once)
    found = frozen(seq(), context, batches)
    assert float((found - wanted).norm() / wanted.norm()) <= 1e-10
    memit = Memit(MemitOptions(**OPTIONS))
    torch.testing.assert_close(frozen(memit, context, at_once), wanted, rtol=1e-8, atol=1e-10)
    forgetful = frozen(memit, context, batches)
    assert float((forgetful - wanted).norm() / wanted.norm()) > 1e-2


@pytest.mark.parametrize(("lambda_prev", "norm"), [(1.0, 0.0), (0.3, 0.0), (0.0, 0.0), (1.0, 0.7), (2.5, 0.2)])
@pytest.mark.parametrize("earlier", [0, 5, 30, 200])
def test_the_directions_solve_the_systems_written_out(moments, lambda_prev, norm, earlier):
    context = context_of(tiny_model(torch.float64), moments)
    (keys, _), (past, _) = batches_of([4, max(earlier, 1)], seed=earlier)
    history = [{keys_name(MODULES[1]): part} for part in past.split(3, dim=1)] if earlier else []
    found = seq(lambda_prev=lambda_prev, update_norm_lambda=norm)._directions(context, 1, keys, history)
    system = 0.1 * moments[MODULES[1]] + norm * torch.eye(96, dtype=torch.float64) + keys @ keys.T
    if earlier:
        system = system + lambda_prev * past @ past.T
    torch.testing.assert_close(found, torch.linalg.solve(system, keys), rtol=1e-8, atol=1e-10)


def test_the_same_for_alphaedit(moments):
    """Frozen, AlphaEdit's batches are one batch as well: its normal equations keep earlier keys."""
    context = context_of(tiny_model(torch.float64), moments)
    options = {n: v for n, v in OPTIONS.items() if n != "mom2_update_weight"}
    editor = AlphaEdit(AlphaEditOptions(**options, nullspace_threshold=0.15, L2=0.5))
    batches = batches_of([2, 9, 1])
    at_once = [tuple(torch.cat(parts, dim=1 - i) for i, parts in enumerate(zip(*batches, strict=True)))]
    wanted = frozen(editor, context, at_once)
    assert float((frozen(editor, context, batches) - wanted).norm() / wanted.norm()) <= 1e-10
    assert float((frozen(editor, context, batches, keep_state=False) - wanted).norm() / wanted.norm()) > 1e-2


# ----------------------------------------------------------------------------------------------------- the running root


def test_the_root_stays_exact_over_thousands_of_columns_of_any_size():
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(64, 3000, dtype=torch.float64, generator=generator) * torch.logspace(-2, 2, 3000)
    root = InverseRoot(64)
    for part in columns.split(7, dim=1):
        root.absorb(part)
    new = torch.randn(64, 3, dtype=torch.float64, generator=generator)
    system = torch.eye(64, dtype=torch.float64) + columns @ columns.T
    wanted = torch.linalg.solve(system + new @ new.T, new)
    assert float((root.solve(new) - wanted).norm() / wanted.norm()) < 1e-9


def test_each_state_is_taken_up_once_and_a_history_read_anew_gives_the_same_bits(moments):
    context = context_of(tiny_model(torch.float64), moments)
    parts = [{keys_name(MODULES[1]): keys} for keys, _ in batches_of([2] * 20)]
    (new, _) = batches_of([2], seed=9)[0]
    taken, absorb = [], InverseRoot.absorb

    def counted(self, columns):
        taken.append(columns.shape[1])
        return absorb(self, columns)

    growing, editor = History(), seq()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(InverseRoot, "absorb", counted)
        for part in parts:
            grown = editor._directions(context, 1, new, growing)
            growing.append(part)
        grown = editor._directions(context, 1, new, growing)
    assert taken == [2] * 20
    assert torch.equal(grown, editor._directions(context, 1, new, parts))


# --------------------------------------------------------------------------------------------------------- as an editor


def test_the_first_operation_is_memits_and_the_next_is_not(moments):
    context = context_of(tiny_model(torch.float64), moments)
    first, plain = seq().compute(context, FACTS[:2]), Memit(MemitOptions(**OPTIONS)).compute(context, FACTS[:2])
    for name, delta in plain.deltas.items():
        torch.testing.assert_close(first.deltas[name].dense(torch.float64), delta.dense(torch.float64))
    assert set(first.state) == {keys_name(module) for module in MODULES.values()}
    with temporarily_applied(context.model, first.deltas):
        after = subject_states(context, FACTS[:2], [0, 1], 1).keys
        spared = seq().compute(context, FACTS[2:], [first.state]).deltas
        forgotten = seq(lambda_prev=0.0).compute(context, FACTS[2:], [first.state]).deltas
        memit = Memit(MemitOptions(**OPTIONS)).compute(context, FACTS[2:]).deltas
    for layer, module in MODULES.items():
        assert torch.equal(first.state[keys_name(module)], after[layer]), "the keys on the edited weights"
        name = f"{module}.weight"
        effect = [float((after[layer].T @ d[name].dense(torch.float64)).norm()) for d in (spared, forgotten, memit)]
        assert effect[0] < 0.7 * effect[1]
        assert effect[1] == pytest.approx(effect[2], rel=1e-6)


@pytest.mark.parametrize("size", [1, 2])
def test_without_weight_on_earlier_keys_a_whole_run_is_memits_and_with_it_it_is_not(moments, size):
    memit, without, weighed = (tiny_model(torch.float64) for _ in range(3))
    unedited = weights_of(memit)
    edit(memit, moments, size=size, editor="memit")
    edit(without, moments, size=size, lambda_prev=0)
    edit(weighed, moments, size=size)

    def away(model):
        off = sum((p - q).norm() for p, q in zip(model.parameters(), memit.parameters(), strict=True))
        return float(off / sum((p - unedited[name]).norm() for name, p in memit.named_parameters()))

    assert away(without) <= 1e-12 < 1e-2 < away(weighed)


class Killed(BaseException):
    """Stands for SIGKILL: nothing may be caught on its way."""


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, moments, dtype):
    whole = tiny_model(dtype)
    edit(whole, moments)
    compute, calls = MemitSeq.compute, []

    def dies(self, context, facts, history=()):
        if len(calls) == 3:
            raise Killed
        calls.append(facts)
        return compute(self, context, facts, history)

    monkeypatch.setattr(MemitSeq, "compute", dies)
    with pytest.raises(Killed):
        edit(tiny_model(dtype), moments, ledger=tmp_path / "ledger")
    monkeypatch.setattr(MemitSeq, "compute", compute)
    resumed = tiny_model(dtype)
    edit(resumed, moments, ledger=tmp_path / "ledger")
    assert same_weights(resumed, weights_of(whole))
    monkeypatch.setattr(MemitSeq, "compute", lambda self, context, facts, history=(): compute(self, context, facts))
    forgetful = tiny_model(dtype)
    edit(forgetful, moments)
    assert not same_weights(forgetful, weights_of(whole)), "the state makes a difference"


# --------------------------------------------------------------------------------------------------------------- ENCORE


def test_a_target_stops_so_many_steps_after_it_is_right_in_all_contexts(moments):
    context = context_of(tiny_model(torch.float64), moments)
    found = {}
    for after in (None, 0, 1, 3):
        editor = seq(v_num_grad_steps=60, v_lr=0.2, stop_after_correct=after)
        found[after] = editor._goals(context, LEARNABLE, 1).details
    assert "stopped_after_correct" not in found[None]
    assert all(found[after]["stopped_after_correct"] == len(LEARNABLE) for after in (0, 1, 3)), found
    for fact in range(len(LEARNABLE)):
        first = found[0]["steps"][fact]
        assert [found[after]["steps"][fact] for after in (1, 3)] == [first + 1, first + 3]
        assert found[None]["steps"][fact] > first + 3, "without it the target goes on"


def test_a_target_that_is_right_from_the_start_asks_for_nothing(moments):
    model, tokenizer = tiny_model(torch.float64), tiny_tokenizer()
    with torch.no_grad():
        said = int(model(input_ids=torch.tensor([tokenizer.encode(FACTS[0].text)])).logits[0, -1].argmax())
    right = replace(FACTS[0], target_new=tokenizer.decode([said]))
    context = replace(context_of(model, moments), context_templates=[["{}"]])
    result = seq(stop_after_correct=0).compute(context, [right])
    assert (result.details["steps"], result.details["stopped_after_correct"]) == ([0], 1)
    assert result.details["closed"] == 1.0, "and not a share of what rounding leaves"
    assert all(float(delta.norm()) < 1e-12 for delta in result.deltas.values())
    both = seq(stop_after_correct=0).compute(context, [right, FACTS[1]])
    assert both.details["steps"][0] == 0 < both.details["steps"][1]


def test_the_norm_is_restrained_by_mu(moments):
    context = context_of(tiny_model(torch.float64), moments)
    norms = [
        float(seq(update_norm_lambda=norm).compute(context, FACTS).deltas[f"{MODULES[0]}.weight"].norm())
        for norm in (0.0, 1.0, 100.0)
    ]
    assert norms[0] > 1.05 * norms[1] > 2 * norms[2]


def test_encore_is_memit_seq_with_both_and_finds_mu_in_the_model(moments):
    context = context_of(tiny_model(torch.float64), moments)
    options = OPTIONS | {"update_norm_lambda": 0.7, "stop_after_correct": 2}
    one = Encore(EncoreOptions(**options)).compute(context, FACTS)
    two = MemitSeq(MemitSeqOptions(**options)).compute(context, FACTS)
    for name in one.deltas:
        assert torch.equal(one.deltas[name].dense(torch.float64), two.deltas[name].dense(torch.float64))
    found = Encore(EncoreOptions(**OPTIONS)).compute(context, FACTS).details["from_model"]
    values = torch.cat([torch.linalg.eigvalsh(moments[module]) for module in MODULES.values()])
    assert found == {"update_norm_lambda": pytest.approx(0.1 * float(values.quantile(0.5)))}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lambda_prev": -1}, "lambda_prev=-1: want a number that is not negative"),
        ({"update_norm_lambda": -0.5}, "update_norm_lambda=-0.5: want a number that is not negative"),
        ({"stop_after_correct": -1}, "stop_after_correct=-1: want a whole number of at least 0, or none"),
        ({"stop_after_correct": 1.5}, "stop_after_correct=1.5: want a whole number"),
        ({"L2": 1}, "L2: no hyper-parameter of memit_seq"),
        ({"norm_anchor": "nowhere.json"}, "norm_anchor=nowhere.json: want a positive number, auto, or a file"),
        ({"norm_anchor": "auto"}, "mean over 50 facts, and the run edits 4"),
        ({"norm_anchor_facts": 3}, "norm_anchor_facts=3: goes with norm_anchor=auto"),
    ],
)
def test_wrong_options(moments, given, message):
    model = tiny_model()
    kept = weights_of(model)
    with pytest.raises(UserError, match=message):
        edit(model, moments, **given)
    assert same_weights(model, kept)


def test_presets():
    found = {p.name: p.options.get("mom2_update_weight") for p in presets("memit_seq")}
    assert found.pop("demo with own_targets") is None, "it comes from the model"
    assert found == {"gpt2-xl": 20000, "gpt-j-6b": 15000, "llama-3-8b": 15000, "demo": 100}
    encore = presets("encore")[0].options
    assert (encore["update_norm_lambda"], encore["stop_after_correct"], encore["v_lr"]) == (20, 2, 0.5)


def test_options_that_came_later_are_told_where_they_are_used():
    plain, used = seq().describe(), seq(own_targets=True, norm_anchor=2.0, stop_after_correct=0).describe()
    assert set(used) - set(plain) == {"own_targets", "norm_anchor", "stop_after_correct"}
    assert Encore(EncoreOptions()).describe()["stop_after_correct"] == 2
