"""FT: equal to EasyEdit's FT-L, within its norm constraint, and FT-M by the language model's own loss."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from lm_eval_edit import ConfigurationError, edit_model
from lm_eval_edit.editors._shared.finetune import padded, target_loss, target_row
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.ft import Ft, FtOptions, _batch, _prompt_last_row
from lm_eval_edit.editors.hyperparameters import resolve
from lm_eval_edit.edits.answers import edit_answers
from lm_eval_edit.facts.fact import Fact, parse_record
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from tests.support.tiny import FACTS, LEARNABLE, same_weights, tiny_model, tiny_tokenizer, weights_of

WEIGHT, BIAS = "transformer.h.1.mlp.c_proj.weight", "transformer.h.1.mlp.c_proj.bias"
OPTIONS = {"layers": [1], "num_steps": 25, "lr": 5e-3}


def edit(model, facts, batch=1, ledger=None, **options):
    return edit_model(
        model, tiny_tokenizer(), facts, "ft", batch, options=OPTIONS | options, ledger=ledger, progress=False
    )


@pytest.mark.parametrize("name", ["gpt2-tiny", "llama-tiny"])
def test_equals_the_published_deltas(reference, name):
    info = json.loads((reference / "deltas" / f"FT_{name}.json").read_text())
    theirs = load_file(reference / "deltas" / f"FT_{name}.safetensors")
    folder = reference / "models" / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    compared = set()
    for call, entry in enumerate(info["facts"]):
        fact = parse_record(entry, "reference", str(call))
        ledger = edit_model(model, tokenizer, [fact], "ft", options=info["hparams"], progress=False)
        for parameter, delta in ledger.operations[0].deltas.items():
            wanted = theirs[f"call{call}/delta/{parameter}"]
            assert wanted.norm() > 0
            assert (delta.dense(torch.float64) - wanted).norm() / wanted.norm() <= 1e-8
            compared.add(f"call{call}/delta/{parameter}")
        ledger.restore()
    assert compared == theirs.keys(), "weight and, where the module has one, bias"


@pytest.mark.parametrize("objective", ["target_new", "prompt_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_edit_takes_and_restores_bit_for_bit(objective, dtype):
    model, tokenizer = tiny_model(dtype), tiny_tokenizer()
    kept = weights_of(model)
    for fact in LEARNABLE:
        assert not edit_answers(model, tokenizer, [fact])[0].exact
        ledger = edit(model, [fact], objective_optimization=objective)
        assert edit_answers(model, tokenizer, [fact])[0].exact
        changed = {name for name, p in model.named_parameters() if not torch.equal(p, kept[name])}
        assert changed == {WEIGHT, BIAS}
        ledger.restore()
        assert same_weights(model, kept)


def test_computing_an_edit_leaves_the_model_alone():
    model = tiny_model(torch.bfloat16)
    model.transformer.wte.weight.requires_grad_(False)
    kept, wanted = weights_of(model), [p.requires_grad for p in model.parameters()]
    parameters = [id(p) for p in model.parameters()]
    context = EditContext(model, tiny_tokenizer(), Architecture.discover(model), (), SecondMoments())
    deltas = Ft(FtOptions(layers=(0, 2), num_steps=2)).compute(context, FACTS).deltas
    assert same_weights(model, kept) and [id(p) for p in model.parameters()] == parameters
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    assert len(deltas) == 4 and all(delta.value.dtype == torch.float32 for delta in deltas.values())


def test_the_norm_constraint_holds_and_is_needed():
    model = tiny_model(torch.float64)
    free = edit(model, LEARNABLE[:1]).operations[0].deltas[WEIGHT].value
    assert free.abs().max() > 2e-3
    tied = edit(tiny_model(torch.float64), LEARNABLE[:1], norm_constraint="2e-3").operations[0].deltas
    for delta in tied.values():
        assert delta.value.abs().max() <= 2e-3 + 1e-12
    assert (tied[WEIGHT].value.abs() > 2e-3 - 1e-9).any(), "the bound is reached"


def test_target_new_is_the_models_own_loss():
    model, tokenizer = tiny_model(torch.float64), tiny_tokenizer()
    fact = Fact("Rosa Novak", "{} was born in", "the city of Oslo", id="x")
    rows = padded(model, [target_row(tokenizer, fact), target_row(tokenizer, FACTS[0])])
    with torch.no_grad():
        logits = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
        ours = target_loss(logits[rows.label_rows, rows.label_columns], rows)
        theirs = []
        for each in (fact, FACTS[0]):
            ids = tokenizer(each.text + each.target, return_tensors="pt").input_ids
            labels = ids.clone()
            labels[:, : len(tokenizer.encode(each.text))] = -100
            theirs.append(model(input_ids=ids, labels=labels).loss)
    torch.testing.assert_close(ours.float(), torch.stack(theirs).mean())  # transformers sums it in float32


def test_prompt_last_scores_all_tokens_at_the_prompts_end_also_in_a_batch():
    model, tokenizer = tiny_model(torch.float64), tiny_tokenizer()
    facts = (Fact("Rosa Novak", "{} was born in", "the city of Oslo", id="x"), FACTS[0])
    rows = _batch(model, [_prompt_last_row(tokenizer, fact) for fact in facts], "prompt_last")
    with torch.no_grad():
        logits = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
        ours = target_loss(logits[rows.label_rows, rows.label_columns], rows)
        theirs = []
        for fact in facts:
            logits = model(**tokenizer(fact.text, return_tensors="pt")).logits[0, -1]
            theirs.append(-logits.log_softmax(-1)[tokenizer.encode(fact.target)].mean())
    torch.testing.assert_close(ours, torch.stack(theirs).mean())


def test_batches_are_learnt_together_in_chunks_of_batch_size():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    ledger = edit(model, LEARNABLE, 2, num_steps=60)
    assert all(answer.exact for answer in edit_answers(model, tokenizer, LEARNABLE))
    assert len(ledger.operations) == 1
    one = edit(tiny_model(torch.float64), FACTS, 4, num_steps=3, batch_size=4).operations[0].deltas[WEIGHT].value
    two = edit(tiny_model(torch.float64), FACTS, 4, num_steps=3, batch_size=2).operations[0].deltas[WEIGHT].value
    assert (one - two).norm() > 0.1 * one.norm(), "gradient steps on fewer facts at a time are other steps"


@pytest.mark.parametrize("objective", ["target_new", "prompt_last"])
def test_how_a_weight_lies_in_memory_changes_nothing(objective):
    """A weight that lies transposed is learnt as the same one in order is."""
    found = []
    for transposed in (False, True):
        model = tiny_model(torch.float64)
        if transposed:
            weight = model.get_parameter(WEIGHT)
            weight.data = weight.data.T.contiguous().T
            assert not weight.is_contiguous()
        found.append(edit(model, FACTS[:1], objective_optimization=objective).operations[0].deltas[WEIGHT].value)
    assert (found[0] - found[1]).norm() <= 1e-9 * found[0].norm()


def test_it_stops_when_the_facts_are_learnt(monkeypatch):
    monkeypatch.setattr("lm_eval_edit.editors.ft.STOP_LOSS", 0.5)
    details = edit(tiny_model(), LEARNABLE[:1], num_steps=100).operations[0].record["details"]
    assert details["steps"] < 100 and details["loss"][1] < 0.5 < details["loss"][0]


def test_presets_are_the_published_ones():
    config = GPT2Config(n_embd=1600, n_layer=48)
    found, problems = resolve(Ft, config, {})
    assert not problems and found.preset == "gpt2-xl"
    o = found.editor.options
    assert (o.layers, o.norm_constraint, o.batch_size, o.objective_optimization) == ((0,), 5e-4, 3, "prompt_last")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective_optimization": "target"}, r"objective_optimization='target': want target_new \(FT-M\)"),
        ({"norm_constraint": -1}, r"norm_constraint=-1: want a number above 0, or false for no limit"),
        ({"norm_constraint": "tight"}, r"norm_constraint='tight': want a number above 0"),
        ({"kl_factor": 0.1}, r"kl_factor=0.1: FT has no KL term"),
        ({"batch_size": 0}, r"batch_size=0: want at least 1"),
        ({"num_steps": 0}, r"num_steps=0: want at least 1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    model = tiny_model()
    kept = weights_of(model)
    with pytest.raises(ConfigurationError, match=message):
        edit(model, LEARNABLE[:1], **options)
    assert same_weights(model, kept)
