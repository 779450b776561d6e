"""MEMIT: equal to the published implementation, and true to its own equations."""

from __future__ import annotations

import random

import pytest
import torch

from lm_eval_edit import Fact, UserError, demo, edit_model, load_facts
from lm_eval_edit.editors._shared import target
from lm_eval_edit.editors._shared.keys import (
    solve_large_batch,
    solve_normal_equations,
    solve_small_batch,
    subject_states,
)
from lm_eval_edit.editors._shared.rows import prompt_row
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.hyperparameters import presets, resolve
from lm_eval_edit.editors.memit import Memit, MemitOptions
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from tests.support.decoders import CASES, case, every_case, site
from tests.support.published import MODELS, load_model, load_run, relative_errors
from tests.support.tiny import (
    FACTS,
    LEARNABLE,
    NESTED_TEMPLATES,
    TEMPLATES,
    same_weights,
    tiny_model,
    tiny_second_moments,
    tiny_tokenizer,
    weights_of,
)

OPTIONS = {
    "layers": (0, 1), "v_num_grad_steps": 25, "v_lr": 0.5, "v_weight_decay": 1e-3, "clamp_norm_factor": 4.0,
    "mom2_update_weight": 0.1,
}  # fmt: skip

MANY_FACTS = [
    Fact(f"{first} {last}", prompt, "Oslo", id=f"{first} {last} {prompt}")
    for first in ("Nils", "Greta", "Boris", "Rosa")
    for last in ("Albrecht", "Dumont", "Novak", "Prague")
    for prompt in ("The mother tongue of {}", "the city of {}", "{} was born in")
]  # more than a third of the key dimension


def context_of(model, templates=NESTED_TEMPLATES) -> EditContext:
    moments = SecondMoments(tiny_second_moments(model))
    return EditContext(model, tiny_tokenizer(), Architecture.discover(model), templates, moments)


def edit(model, facts, **extra):
    return edit_model(
        model, tiny_tokenizer(), facts, "memit", edit_batch_size=len(facts), options=OPTIONS | extra,
        context_templates=NESTED_TEMPLATES, second_moments=tiny_second_moments(tiny_model(torch.float64)),
        progress=False,
    )  # fmt: skip


# ----------------------------------------------------------------------------------- parity with the published editor


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("run", "deltas"), [("MEMIT", 3), ("MEMITbs2", 6)])
def test_equals_the_published_deltas(reference, run, deltas, name):
    errors = dict(relative_errors(reference, run, name, "memit"))
    assert len(errors) == deltas and max(errors.values()) <= 1e-6, errors


@pytest.mark.parametrize("name", MODELS)
def test_targets_and_positions_are_the_published_ones(reference, name):
    info, figures, facts = load_run(reference, "MEMIT", name)
    model, tokenizer = load_model(reference / "models" / name, torch.float64)
    names = {f for f in MemitOptions.__dataclass_fields__ if f in info["hparams"]}
    editor = Memit(MemitOptions(**{f: info["hparams"][f] for f in names}))
    templates = info["context_templates"]
    context = EditContext(model, tokenizer, Architecture.discover(model), templates, SecondMoments())
    values = editor._goals(context, facts, editor.layers()[-1]).values
    for r, value in enumerate(values):
        torch.testing.assert_close(value, figures[f"call0/z{r}"], rtol=1e-9, atol=1e-9)
    positions = [
        prompt_row(tokenizer, template, fact.subject, context=around).subject_last
        for fact in facts
        for template, around in [*((fact.template, t) for group in templates for t in group), ("{} is a", "{}")]
    ]
    assert positions == info["calls"][0]["subject_last_positions"]


# --------------------------------------------------------------------------------------------------------------- keys


def plain_states(model, fact, layer, template):
    """Key of a layer and output of block 1 at the subject's last token, one prompt at a time in a full pass."""
    seen = {}
    hooks = [
        model.transformer.h[layer].mlp.c_proj.register_forward_hook(lambda m, args, out: seen.update(key=args[0])),
        model.transformer.h[1].register_forward_hook(
            lambda m, args, out: seen.update(out=out[0] if isinstance(out, tuple) else out)
        ),
    ]
    row = prompt_row(tiny_tokenizer(), fact.template, fact.subject, context=template)
    with torch.no_grad():
        model(input_ids=torch.tensor([row.ids]))
    for hook in hooks:
        hook.remove()
    return seen["key"][0, row.subject_last], seen["out"][0, row.subject_last]


@pytest.mark.parametrize("rows_at_once", [1, 7, 512])
def test_keys_are_the_mean_of_the_means_of_each_template_type(monkeypatch, rows_at_once):
    monkeypatch.setattr("lm_eval_edit.editors._shared.keys.ROWS_AT_ONCE", rows_at_once)
    model = tiny_model(torch.float64)
    states = subject_states(context_of(model), FACTS, [0, 1], 1)
    for layer in (0, 1):
        assert states.keys[layer].shape == (96, len(FACTS))
        for i, fact in enumerate(FACTS):
            bare, *templated = (plain_states(model, fact, layer, template)[0] for template in TEMPLATES)
            wanted = (bare + torch.stack(templated).mean(dim=0)) / 2
            torch.testing.assert_close(states.keys[layer][:, i], wanted)
            assert (wanted - torch.stack([bare, *templated]).mean(dim=0)).norm() > 1e-3, "not the mean of all templates"
    for i, fact in enumerate(FACTS):
        torch.testing.assert_close(states.outputs[i], plain_states(model, fact, 0, "{}")[1])


@every_case
def test_every_kind_of_decoder_gives_its_keys_and_is_edited_and_restored(name):
    model, tokenizer, architecture = case(name)
    context = EditContext(model, tokenizer, architecture, (("{}",),), SecondMoments())
    states = subject_states(context, FACTS, [1], 1)
    tolerance = 1e-5 if CASES[name].rounds else 1e-9
    for i, fact in enumerate(FACTS):
        key, _ = site(model, architecture, tokenizer, fact)
        torch.testing.assert_close(states.keys[1][:, i], key, rtol=tolerance, atol=tolerance)
    kept = weights_of(model)
    modules = [architecture.down_projections[layer] for layer in (0, 1)]
    ledger = edit_model(
        model, tokenizer, FACTS, "memit", 4, options=OPTIONS | {"v_num_grad_steps": 3}, context_templates=[["{}"]],
        second_moments={module: torch.eye(architecture.key_size) for module in modules}, progress=False,
    )  # fmt: skip
    assert ledger.weights.touched == [architecture.weight(0), architecture.weight(1)]
    ledger.restore()
    assert same_weights(model, kept)


# ------------------------------------------------------------------------------------------------------------- solves


@pytest.mark.parametrize("n", [1, 20, 40, 80, 200])
def test_both_solves_equal_a_plain_one_and_meet_the_normal_equations(n):
    generator = torch.Generator().manual_seed(n)
    sample = torch.randn(300, 60, dtype=torch.float64, generator=generator)
    keys = torch.randn(60, n, dtype=torch.float64, generator=generator)
    keys[:, -1] = keys[:, 0]  # a fact given twice
    moment, weight = sample.T @ sample / 300, 7.0
    system = weight * moment + keys @ keys.T
    plain = torch.linalg.solve(system, keys)
    moments = SecondMoments({"m": moment})
    small = solve_small_batch(moments.cholesky("m"), weight, keys)
    large = solve_large_batch(moment, weight, keys)
    chosen = solve_normal_equations(moments, "m", weight, keys)
    for solution in (small, large, chosen):
        torch.testing.assert_close(solution, plain, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(system @ solution, keys, rtol=1e-9, atol=1e-9)
    assert torch.equal(chosen, small if 3 * n <= 60 else large)
    assert (system @ (keys / weight) - keys).norm() > 0.1 * keys.norm(), "no other direction meets them"


def test_a_singular_system_is_refused():
    few = torch.randn(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for n in (5, 40):
        keys = few[:, :1].expand(60, n).contiguous()
        with pytest.raises(UserError, match=r"not positive definite.* too few tokens for .*60 dimensions"):
            solve_normal_equations(SecondMoments({"m": few @ few.T}), "m", 1.0, keys)
        with pytest.raises(UserError, match=f"the system of {n} facts' keys holds values that are not finite"):
            solve_normal_equations(SecondMoments({"m": torch.eye(60)}), "m", 1.0, keys * float("inf"))


# --------------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("facts", [FACTS, MANY_FACTS], ids=len)
def test_one_layers_update_is_the_least_squares_solution(facts):
    """ΔW minimises ‖ΔWᵀK − R‖² + λ tr(ΔWᵀCΔW): the gradient of that vanishes at the update, and nowhere near it."""
    model = tiny_model(torch.float64)
    context, weight = context_of(model), OPTIONS["mom2_update_weight"]
    editor = Memit(MemitOptions(**OPTIONS | {"layers": (1,), "v_num_grad_steps": 5}))
    states = subject_states(context, facts, [1], 1)
    keys, rest = states.keys[1], editor._goals(context, facts, 1).values - states.outputs
    (delta,) = editor.compute(context, facts).deltas.values()
    update = delta.dense(torch.float64)  # (f, d)
    moment = context.second_moments["transformer.h.1.mlp.c_proj"]

    def gradient(update):
        return float((keys @ (keys.T @ update - rest) + weight * moment @ update).norm())

    assert gradient(update) < 1e-8 * gradient(torch.zeros_like(update))
    assert gradient(1.01 * update) > 1e-3 * gradient(torch.zeros_like(update))


def test_with_little_weight_on_text_the_last_layer_closes_what_is_missing():
    model = tiny_model(torch.float64)
    context = context_of(model, templates=(("{}",),))
    editor = Memit(MemitOptions(**OPTIONS | {"mom2_update_weight": 1e-9}))
    values = editor._goals(context, FACTS, 1).values
    before = subject_states(context, FACTS, [1], 1).outputs
    ledger = edit_model(
        model, tiny_tokenizer(), FACTS, editor.name, 4, options=OPTIONS | {"mom2_update_weight": 1e-9},
        context_templates=[["{}"]], second_moments=context.second_moments, progress=False,
    )  # fmt: skip
    after = subject_states(context, FACTS, [1], 1).outputs
    torch.testing.assert_close(after, values, rtol=1e-5, atol=1e-5)
    assert (before - values).norm() > 0.1 * values.norm()
    missing = ledger.operations[0].record["details"]["missing"]
    assert len(missing) == 2 and missing[1] < missing[0], "the first layer has done its share"


@pytest.mark.parametrize("n", [1, 3])
def test_the_rank_is_the_number_of_facts(n):
    ledger = edit(tiny_model(torch.float64), FACTS[:n])
    assert set(ledger.operations[0].deltas) == {f"transformer.h.{layer}.mlp.c_proj.weight" for layer in (0, 1)}
    for delta in ledger.operations[0].deltas.values():
        assert delta.rank == torch.linalg.matrix_rank(delta.dense(torch.float64)) == n


def test_later_layers_see_the_earlier_ones_updates():
    both = edit(tiny_model(torch.float64), FACTS).operations[0].deltas
    alone = edit(tiny_model(torch.float64), FACTS, layers=[1]).operations[0].deltas
    name = "transformer.h.1.mlp.c_proj.weight"
    difference = both[name].dense(torch.float64) - alone[name].dense(torch.float64)
    assert difference.norm() > 1e-3 * alone[name].norm()


def test_targets_of_many_requests_together_are_those_of_each_alone():
    together = edit(tiny_model(torch.float64), FACTS).operations[0]
    for size in (1, 3):
        chunked = edit(tiny_model(torch.float64), FACTS, v_batch_size=size).operations[0]
        assert chunked.record["details"]["steps"] == together.record["details"]["steps"]
        for name, delta in together.deltas.items():
            torch.testing.assert_close(chunked.deltas[name].dense(torch.float64), delta.dense(torch.float64))


def test_a_request_that_has_stopped_leaves_the_passes_and_the_others_do_not_notice(monkeypatch):
    counts = []
    losses = target._Objective.losses

    def counted(objective, running):
        counts.append(len(running.requests))
        return losses(objective, running)

    model, tokenizer = load_model(demo.CHECKPOINT, torch.float64)
    facts = random.Random(0).sample(list(load_facts("demo")), 4)

    def edited(size):
        ledger = edit_model(
            model, tokenizer, facts, "memit", len(facts), {"v_batch_size": size}, progress=False,
            second_moments=demo.SECOND_MOMENTS,
        )  # fmt: skip
        ledger.restore()
        return ledger.operations[0]

    alone = edited(1)
    monkeypatch.setattr(target._Objective, "losses", counted)
    together = edited(len(facts))
    steps = together.record["details"]["steps"]
    assert len(set(steps)) == 4, "they stop at different steps"
    # A request that took k steps is in k + 1 passes: the last one only shows its loss.
    running = [sum(taken >= passed for taken in steps) for passed in range(max(steps) + 1)]
    assert counts == running
    assert steps == alone.record["details"]["steps"]
    for name, delta in alone.deltas.items():
        torch.testing.assert_close(together.deltas[name].dense(torch.float64), delta.dense(torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_edits_take_and_restore_bit_for_bit(dtype):
    model = tiny_model(dtype)
    kept = weights_of(model)
    ledger = edit(model, LEARNABLE)
    record = ledger.operations[0].record
    assert record["before"]["em"] == 0.0 and record["after"]["em"] == 1.0
    assert all(
        tensor.dtype == torch.float32 for d in ledger.operations[0].deltas.values() for tensor in (d.left, d.right)
    )
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, kept[name])]
    assert changed == [f"transformer.h.{layer}.mlp.c_proj.weight" for layer in (0, 1)]
    ledger.restore()
    assert same_weights(model, kept)


def test_computing_an_edit_leaves_the_model_alone():
    model = tiny_model()
    kept = weights_of(model)
    wanted = [p.requires_grad for p in model.parameters()]
    Memit(MemitOptions(**OPTIONS)).compute(context_of(model), FACTS)
    assert same_weights(model, kept)
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# ------------------------------------------------------------------------------------------- options, presets, errors


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alg_name": "ROME"}, "the hyper-parameters are for ROME, the editor is memit"),
        ({"fact_token": "last"}, "fact_token='last': only 'subject_last' is supported"),
        ({"mom2_adjustment": False}, "mom2_adjustment=False: this method is built on the second moments"),
        ({"mom2_update_weight": 0}, "mom2_update_weight=0: want a positive number"),
        ({"v_batch_size": 0}, "v_batch_size=0: want at least 1"),
        ({"layers": [1, 0]}, r"layers=\[1, 0\]: want each layer once, lowest first"),
        ({"layers": [1, 3]}, "layer 3 is out of range"),
        ({"nullspace_threshold": 0.1}, "nullspace_threshold: no hyper-parameter of memit"),
        ({"context_templates": ["{}", "So . {}"]}, "memit wants a list of lists"),
    ],
)
def test_wrong_options(given, message):
    model = tiny_model()
    kept = weights_of(model)
    with pytest.raises(UserError, match=message):
        edit_model(
            model, tiny_tokenizer(), FACTS, "memit", 4, options=OPTIONS | given,
            second_moments=tiny_second_moments(model, torch.float32), progress=False,
        )  # fmt: skip
    assert same_weights(model, kept)


def test_without_second_moments_the_error_does_not_offer_romes_way_out():
    with pytest.raises(UserError, match=r"memit .* needs the second moments of .*c_proj; no second .* were") as caught:
        edit_model(tiny_model(), tiny_tokenizer(), FACTS, "memit", 4, options=OPTIONS, progress=False)
    assert "mom2_adjustment" not in str(caught.value) and "edit_second_moments=FILE" in str(caught.value)


def test_easyedits_hparams_are_accepted_and_those_for_another_size_are_not():
    published = {
        "alg_name": "MEMIT", "model_name": "./gpt2-tiny", "layer_selection": "all", "v_loss_layer": 2, "batch_size": 1,
        "mom2_adjustment": True, "mom2_update_weight": "2e4", "layers": [0, 1], "ln_f_module": "transformer.ln_f",
    }  # fmt: skip
    found, problems = resolve(Memit, tiny_model().config, published)
    assert not problems and found.editor.options.mom2_update_weight == 20000
    assert len(found.notices) == 1 and "v_lr 0.5" in found.notices[0] and "relative depth" not in found.notices[0]
    _, problems = resolve(Memit, tiny_model().config, published | {"v_loss_layer": 47})
    assert len(problems) == 1 and "for a model of another size, this one's last layer is 2" in problems[0]


def test_layers_by_relative_depth():
    assert Memit.default_layers(48) == (13, 14, 15, 16, 17)
    assert Memit.default_layers(6) == (2,) and Memit.default_layers(2) == (1,)
    assert all(max(Memit.default_layers(n)) < n for n in range(1, 100))


def test_presets_are_complete():
    assert [p.name for p in presets("memit")] == [
        "llama-3-8b with own_targets",
        "gpt2-xl",
        "gpt-j-6b",
        "llama-7b",
        "demo with own_targets",
        "demo",
    ]
    for preset in presets("memit"):
        MemitOptions(**preset.options | {"layers": tuple(preset.options["layers"])})


@pytest.mark.parametrize("editor", ["memit", "memit_seq", "encore", "emmet", "alphaedit"])
def test_the_demos_presets_take_alone_and_twenty_together(editor):
    model, tokenizer = load_model(demo.CHECKPOINT, torch.float32)
    facts = random.Random(0).sample(list(load_facts("demo")), 30)
    moments = demo.SECOND_MOMENTS
    for batch in ([[fact] for fact in facts[:10]], [facts[10:]]):
        taken = []
        for operation in batch:
            ledger = edit_model(
                model, tokenizer, operation, editor, len(operation), second_moments=moments, progress=False
            )
            record = ledger.operations[0].record
            assert record["before"]["em"] == 0
            taken.append(record["after"]["em"])
            ledger.restore()
        assert sum(taken) / len(taken) >= 0.9
