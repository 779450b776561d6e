"""ROME: equal to the published implementation, and true to its own equations."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_edit import edit_model
from lm_eval_edit.editors._shared.forward import PartialForward
from lm_eval_edit.editors._shared.rows import align, fact_rows, prompt_row
from lm_eval_edit.editors._shared.target import optimise_targets
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.rome import Rome, RomeOptions
from lm_eval_edit.edits.answers import edit_answers
from lm_eval_edit.facts.fact import parse_record
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from tests.support.tiny import FACTS, LEARNABLE, TEMPLATES, grid, same_weights, tiny_model, tiny_tokenizer, weights_of

MODELS = ("gpt2-tiny", "llama-tiny")
OPTIONS = {"layers": [1], "v_num_grad_steps": 25, "v_lr": 0.5, "v_weight_decay": 1e-3, "clamp_norm_factor": 8}


def edit(model, facts, **extra):
    return edit_model(
        model, tiny_tokenizer(), facts, "rome", options=OPTIONS | extra, context_templates=TEMPLATES, progress=False
    )


# ----------------------------------------------------------------------------------- parity with the published editors


def run_reference(reference, run: str, name: str):
    """Our deltas and the published ones: [(ours, theirs)], in call order, and the running JSON."""
    info = json.loads((reference / "deltas" / f"{run}_{name}.json").read_text())
    theirs = load_file(reference / "deltas" / f"{run}_{name}.safetensors")
    folder = reference / "models" / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    facts = [parse_record(entry, "reference", str(i)) for i, entry in enumerate(info["facts"])]
    ledger, pairs = None, []
    sequences = [facts] if info["mode"] != "independent" else [[fact] for fact in facts]
    call = 0
    for sequence in sequences:
        ledger = edit_model(
            model, tokenizer, sequence, "rome",
            options=info["hparams"] | {"alg_name": "ROME"},
            context_templates=info["context_templates"],
            second_moments=folder / "second_moments.safetensors",
            progress=False,
        )  # fmt: skip
        for operation in ledger.operations:
            for parameter, delta in operation.deltas.items():
                pairs.append((delta.dense(torch.float64), theirs[f"call{call}/delta/{parameter}"]))
            call += 1
        ledger.restore()
    return pairs


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("run", "tolerance"), [("ROME", 1e-8), ("ROMEseq", 1e-8), ("ROMEcov", 1e-2)])
def test_equals_the_published_deltas(reference, run, name, tolerance):
    pairs = run_reference(reference, run, name)
    assert len(pairs) == 4
    for ours, theirs in pairs:
        assert theirs.norm() > 0
        assert (ours - theirs).norm() / theirs.norm() <= tolerance


@pytest.mark.parametrize("name", MODELS)
def test_subject_positions_are_the_published_ones(reference, name):
    info = json.loads((reference / "deltas" / f"ROME_{name}.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(reference / "models" / name)
    for call in info["calls"]:
        fact = parse_record(info["facts"][call["case_ids"][0]], "reference", "0")
        rows = fact_rows(tokenizer, fact, info["context_templates"])
        rows.append(prompt_row(tokenizer, "{} is a", fact.subject))
        assert [row.subject_last for row in rows] == call["subject_last_positions"]


# --------------------------------------------------------------------------------------------------------- properties


def key_and_output(model, fact):
    """The bare prompt's key at the edited layer and the MLP output there, computed the plain way."""
    tokenizer, seen = tiny_tokenizer(), {}
    projection = model.transformer.h[1].mlp.c_proj
    handle = projection.register_forward_hook(lambda m, args, out: seen.update(key=args[0], out=out))
    row = prompt_row(tokenizer, fact.template, fact.subject)
    with torch.no_grad():
        model(input_ids=torch.tensor([row.ids]))
    handle.remove()
    return seen["key"][0, row.subject_last], seen["out"][0, row.subject_last]


def test_the_edited_key_gives_the_target_value_and_did_not_before():
    model = tiny_model(torch.float64)
    tokenizer, fact = tiny_tokenizer(), FACTS[0]
    architecture = Architecture.discover(model)
    context = EditContext(model, tokenizer, architecture, TEMPLATES, SecondMoments())
    editor = Rome(RomeOptions(**(OPTIONS | {"layers": (1,)})))
    value = editor._targets(context, fact, 1).value[0]
    key, before = key_and_output(model, fact)
    ledger = edit(model, [fact])
    key_after, after = key_and_output(model, fact)
    torch.testing.assert_close(key_after, key)  # what lies below the edited matrix is unchanged
    torch.testing.assert_close(after, value, rtol=1e-9, atol=1e-9)
    assert (before - value).norm() > 0.1 * value.norm()
    (delta,) = ledger.operations[0].deltas.values()
    assert torch.linalg.matrix_rank(delta.dense(torch.float64)) == 1


def test_the_edit_takes_and_restores_bit_for_bit():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    kept = weights_of(model)
    assert not any(answer.exact for answer in edit_answers(model, tokenizer, LEARNABLE))
    for fact in LEARNABLE:
        ledger = edit(model, [fact])
        assert edit_answers(model, tokenizer, [fact])[0].exact
        assert ledger.guards["answers_changed"] == 1
        changed = [name for name, p in model.named_parameters() if not torch.equal(p, kept[name])]
        assert changed == ["transformer.h.1.mlp.c_proj.weight"]
        ledger.restore()
        assert same_weights(model, kept)


def test_computing_an_edit_leaves_the_model_alone():
    model = tiny_model()
    kept = weights_of(model)
    wanted = [p.requires_grad for p in model.parameters()]
    forwards = [block.forward.__func__ for block in model.transformer.h]
    context = EditContext(model, tiny_tokenizer(), Architecture.discover(model), TEMPLATES, SecondMoments())
    Rome(RomeOptions(layers=(0, 2))).compute(context, [FACTS[2]])
    assert same_weights(model, kept)
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert [block.forward.__func__ for block in model.transformer.h] == forwards
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_several_layers_are_edited_one_after_the_other():
    model, fact = tiny_model(torch.float64), FACTS[0]
    together = edit(model, [fact], layers=[1, 2])
    deltas = together.operations[0].deltas
    together.restore()
    first = edit(model, [fact], layers=[1])  # stays applied
    second = edit(model, [fact], layers=[2])
    for layer, ledger in ((1, first), (2, second)):
        name = f"transformer.h.{layer}.mlp.c_proj.weight"
        torch.testing.assert_close(
            ledger.operations[0].deltas[name].dense(torch.float64), deltas[name].dense(torch.float64)
        )


def test_covariance_turns_the_update_away_from_common_keys():
    model = tiny_model(torch.float64)
    common = torch.full((96,), 96**-0.5, dtype=torch.float64)  # activations are mostly positive: keys lean this way
    moment = torch.eye(96, dtype=torch.float64) + 1e4 * torch.outer(common, common)
    module = "transformer.h.1.mlp.c_proj"

    def overlap(**extra) -> float:
        ledger = edit_model(
            model, tiny_tokenizer(), [FACTS[0]], "rome", options=OPTIONS | extra, context_templates=TEMPLATES,
            second_moments={module: moment}, progress=False,
        )  # fmt: skip
        direction = ledger.operations[0].deltas[module + ".weight"].left[:, 0]
        ledger.restore()
        return float((direction @ common).abs() / direction.norm())

    assert overlap(mom2_adjustment=False) > 0.1
    assert overlap(mom2_adjustment=True) < 1e-3


# ------------------------------------------------------------------------------- the partial forward and the batching


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_partial_forward_equals_the_full_one(start):
    model, tokenizer = tiny_model(torch.float64), tiny_tokenizer()
    rows = [row for fact in FACTS for row in fact_rows(tokenizer, fact, TEMPLATES)]
    aligned = align(rows, torch.device("cpu"))
    forward = PartialForward(model, Architecture.discover(model), aligned, start, capture=(1,))
    columns = torch.arange(aligned.column, aligned.input_ids.shape[1])
    logits = grid(forward, columns)
    for r, row in enumerate(rows):
        with torch.no_grad():
            full = model(input_ids=torch.tensor([row.ids])).logits[0, row.subject_last :]
        torch.testing.assert_close(logits[r, : len(full)].detach(), full, rtol=1e-9, atol=1e-9)


def test_many_requests_together_equal_each_alone(monkeypatch):
    monkeypatch.setattr("lm_eval_edit.editors._shared.target.STOP_LOSS", 0.3)
    model, tokenizer = tiny_model(torch.float64), tiny_tokenizer()
    architecture = Architecture.discover(model)
    common = {
        "layer": 1, "site": "block", "contexts": TEMPLATES, "steps": 20, "lr": 0.5, "weight_decay": 1e-3,
        "clamp_norm_factor": 1.5, "kl_factor": 1e-4,
    }  # fmt: skip
    together = optimise_targets(model, tokenizer, architecture, FACTS, **common)
    alone = [optimise_targets(model, tokenizer, architecture, [fact], **common) for fact in FACTS]
    assert len(set(together.steps.tolist())) > 1, "the requests stop at different steps"
    assert together.steps.tolist() == [int(single.steps[0]) for single in alone]
    torch.testing.assert_close(together.delta, torch.cat([single.delta for single in alone]))
    norms = together.delta.norm(dim=1) / together.init.norm(dim=1)
    assert (norms <= 1.5 + 1e-9).all() and (norms < 1.49).any() and (norms > 1.49).any(), "clamped one by one"
