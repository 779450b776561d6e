"""Training MEND: the batched edit is the real one, training helps, and a stopped run goes on bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lm_eval_edit import Fact, Facts, Probe, UserError
from lm_eval_edit.cli import main
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.mend.archive import load_archive
from lm_eval_edit.editors.mend.editor import Mend, MendOptions
from lm_eval_edit.editors.mend.network import inner_module
from lm_eval_edit.editors.mend.training import Score, _Trainer, default_inner_params, train_mend
from lm_eval_edit.editors.mend.training_settings import MendTrainingSettings
from lm_eval_edit.edits.answers import edit_answers
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from lm_eval_edit.weights.edited import temporarily_applied
from tests.support.mend_networks import both_ways
from tests.support.tiny import (
    same_weights,
    save_tiny,
    tiny_model,
    tiny_tokenizer,
    weights_of,
    write_facts,
)

NAMES = ["Nils", "Albrecht", "Greta", "Dumont", "Boris", "Lindqvist", "Rosa", "Novak"]
OBJECTS = ["French", "Spanish", "German", "Czech", "Prague", "Berlin", "Vienna", "Oslo"]
PROMPTS = ("The mother tongue of {}", "the city of {}")
PROBES = (Probe("The weather is", "fine"), Probe("born in", "Oslo"))
FACTS = tuple(
    Fact(
        f"{first} {last}", PROMPTS[index % 2], OBJECTS[(3 * index + 1) % 8], id=str(index),
        paraphrases=(PROMPTS[(index + 1) % 2],), locality=PROBES[: index % 3],
    )
    for index, (first, last) in enumerate((a, b) for a in NAMES for b in NAMES if a != b)
)  # fmt: skip
QUICK = MendTrainingSettings(rank=16, batch_size=4, val_facts=8, max_steps=4, val_interval=2, lr=1e-3)


def train(tmp_path, settings=QUICK, model=None, facts=FACTS, **extra):
    lines = []
    record = train_mend(
        model or tiny_model(), tiny_tokenizer(), Facts(tuple(facts)), tmp_path / "mend.safetensors", settings,
        progress=False, report=lines.append, **extra,
    )  # fmt: skip
    return record, lines


def test_every_row_of_a_batch_runs_through_its_own_edited_model(tmp_path):
    """The low-rank forward equals the plain one with dense weights, and training's factors are the editor's delta."""
    model, facts = tiny_model(torch.float64), FACTS[:3]
    train(tmp_path)
    both = both_ways(model, tmp_path / "mend.safetensors", facts, FACTS, QUICK)
    for row, fact in enumerate(facts):
        deltas = both.editor.compute(both.context, [fact]).deltas
        for name, (keys, values) in zip(both.trainer.names, both.factors, strict=True):
            mine = keys[row].T @ values[row]
            torch.testing.assert_close(deltas[name].dense(torch.float64), mine, rtol=1e-6, atol=1e-9)
        with temporarily_applied(model, deltas), torch.no_grad():
            alone = both.batch.log_probs(model)[row]
        torch.testing.assert_close(both.together[row], alone, rtol=1e-6, atol=1e-8)
        assert (both.together[row] - both.unedited[row]).abs().max() > 1e-3


def test_training_makes_edits_of_unseen_facts_succeed(tmp_path):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    kept = weights_of(model)
    settings = replace(QUICK, max_steps=200, val_interval=100, patience=1000, outer="prompt", cedit=1.0)
    untrained = _Trainer(model, tokenizer, Facts(FACTS), tmp_path / "none", settings)
    untrained._factors(FACTS, observe=True)  # normalisation alone does not do it
    record, lines = train(tmp_path, settings, model)
    first, last = untrained.score(untrained.validation), record["history"][-1]
    assert first.edited <= 0.5 and last["edited"] >= 0.75
    assert last["edit_loss"] < 0.5 * first.edit_loss
    assert len(lines) == 2 and lines[0].startswith("step 100: validation loss")
    assert same_weights(model, kept)
    assert not any(module._forward_hooks for module in model.modules())
    editor = Mend(MendOptions(archive=str(tmp_path / "mend.safetensors")))
    context = EditContext(model, tokenizer, Architecture.discover(model), (), SecondMoments())
    taken = 0
    for fact in untrained.validation:
        with temporarily_applied(model, editor.compute(context, [fact]).deltas):
            taken += edit_answers(model, tokenizer, [fact])[0].exact
    best = next(score for score in record["history"] if score["step"] == record["best_step"])
    assert taken == round(best["edited"] * 8), "the archive does what its validation says"


def test_a_resumed_training_ends_with_the_same_bits(tmp_path):
    train(tmp_path / "whole", replace(QUICK, max_steps=6))
    train(tmp_path / "parts", replace(QUICK, max_steps=2))
    assert (tmp_path / "parts" / "mend.safetensors.training" / "step-000002.safetensors").exists()
    record, lines = train(tmp_path / "parts", replace(QUICK, max_steps=6))
    assert record["steps"] == 6 and len(lines) == 2 and [score["step"] for score in record["history"]] == [2, 4, 6]
    folders = [tmp_path / part / "mend.safetensors.training" for part in ("whole", "parts")]
    states = [load_file(folder / "step-000006.safetensors") for folder in folders]
    assert states[0].keys() == states[1].keys() and any(name.startswith("adam.") for name in states[0])
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert json.loads((folders[0] / "state.json").read_text()) == json.loads((folders[1] / "state.json").read_text())
    archives = [(tmp_path / part / "mend.safetensors").read_bytes() for part in ("whole", "parts")]
    assert archives[0] == archives[1]
    _, lines = train(tmp_path / "parts", replace(QUICK, max_steps=6))
    assert lines == [], "a finished training is not done again"


def test_a_training_that_no_longer_improves_stops_and_keeps_the_best(tmp_path, monkeypatch):
    losses = iter([3.0, 2.0, 2.5, float("nan"), 2.1, 2.2, 1.0])
    monkeypatch.setattr(_Trainer, "score", lambda self, *_: Score(next(losses), 0.0, 0.0, 1.0))
    settings = replace(QUICK, max_steps=50, val_interval=2, patience=8, cedit=1.0)
    record, lines = train(tmp_path, settings)
    assert record["stopped_early"] and record["steps"] == 12 and record["best_step"] == 4
    assert [line.count("(best)") for line in lines] == [1, 1, 0, 0, 0, 0]
    assert load_archive(tmp_path / "mend.safetensors").training["step"] == 4


def test_the_same_seed_gives_the_same_archive_and_leaves_the_global_generator_alone(tmp_path):
    state = torch.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(name) + seed)  # what others draw does not matter
        state = torch.get_rng_state()
        model = tiny_model()
        torch.set_rng_state(state)
        train(tmp_path / name, replace(QUICK, seed=seed), model)
        assert torch.equal(torch.get_rng_state(), state)
    a, b, c = ((tmp_path / name / "mend.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_accumulated_passes_see_the_facts_of_one_large_pass():
    small = _Trainer(
        tiny_model(), tiny_tokenizer(), Facts(FACTS), Path("x"), replace(QUICK, batch_size=2, accumulate=2)
    )
    large = _Trainer(tiny_model(), tiny_tokenizer(), Facts(FACTS), Path("x"), QUICK)
    n = len(large.training)
    assert [*small._facts_of(6), *small._facts_of(7)] == large._facts_of(3)
    drawn = [fact.id for number in range(n) for fact in large._facts_of(number)]
    assert all(sorted(drawn[i * n : (i + 1) * n]) == sorted(fact.id for fact in large.training) for i in range(4))
    assert not {fact.id for fact in large.training} & {fact.id for fact in large.validation}


def test_the_default_weights_are_the_mlps_of_the_last_three_blocks():
    names = default_inner_params(tiny_model())
    assert names == tuple(
        f"transformer.h.{layer}.mlp.{name}.weight" for layer in range(3) for name in ("c_fc", "c_proj")
    )
    assert all(inner_module(tiny_model(), name) for name in names)


def test_rows_that_a_model_hands_its_mlps_in_one_are_told_apart(tmp_path):
    model, flat = tiny_model(torch.float64), tiny_model(torch.float64)
    for block in flat.transformer.h:
        whole = block.mlp.forward
        block.mlp.forward = lambda x, whole=whole: whole(x.flatten(0, 1)).reshape(x.shape)  # as OPT's blocks do
    plain, same = (
        _Trainer(each, tiny_tokenizer(), Facts(FACTS), tmp_path / "x", QUICK)._factors(FACTS[:3], observe=False)
        for each in (model, flat)
    )
    for (keys, values), (own_keys, own_values) in zip(plain, same, strict=True):
        torch.testing.assert_close(own_keys, keys)
        torch.testing.assert_close(own_values, values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outer": "both"}, "outer='both': want one of prompt, paraphrase, any"),
        ({"lr": 0.0}, "lr=0.0: want a number above 0"),
        ({"batch_size": -1}, "batch_size=-1: want a number above 0"),
        ({"cloc": -1.0}, "cloc=-1.0: want a number of at least 0"),
    ],
)
def test_wrong_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **change)


def test_a_folder_of_another_training_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(UserError, match=r"is another training's:\n    settings.lr is 0.001 there, 0.1 now"):
        train(tmp_path, replace(QUICK, lr=0.1))
    with pytest.raises(UserError, match="facts is"):
        train(tmp_path, facts=FACTS[1:])
    (tmp_path / "mend.safetensors").unlink()
    with pytest.raises(UserError, match="is gone"):
        train(tmp_path)


def test_too_few_facts_are_told(tmp_path):
    with pytest.raises(UserError, match="given has 9 usable facts; val_facts=8 and batch_size=4 need 12"):
        train(tmp_path, facts=FACTS[:9])


def test_the_command_trains_an_archive_that_edits(tmp_path, capsys):
    save_tiny(tmp_path / "model")
    write_facts(tmp_path / "facts.jsonl", FACTS)
    command = [
        "train", "mend", "--model_args", f"pretrained={tmp_path / 'model'},edit_dataset={tmp_path / 'facts.jsonl'}",
        "device=cpu", "--output", str(tmp_path / "a"), "--rank", "8", "--batch_size", "4", "--val_facts", "8",
        "--max_steps", "2", "--val_interval", "2", "--inner_params", "transformer.h.1.mlp.c_proj.weight",
    ]  # fmt: skip
    assert main(command) == 0
    out, progress = capsys.readouterr()
    assert "old spelling" not in progress
    assert "step 2: validation loss" in progress
    assert "step 2 of 2" in out and f"editor=mend,archive={tmp_path / 'a'}" in out
    archive = load_archive(tmp_path / "a")
    assert archive.inner_params == ("transformer.h.1.mlp.c_proj.weight",) and archive.training["settings"]["rank"] == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "0"], "lm-eval-edit train mend: lr=0.0: want a number above 0"),
        (["--model_args", "pretrained=/nowhere"], "pretrained=/nowhere: cannot be loaded"),
        (["--model_args", "n_edits=1"], "--model_args n_edits: not for training."),
        (["--model_args", "edit_datset=x"], "Did you mean 'edit_dataset'?"),
        (["--model_args", "device=cpu", "--device", "cuda"], "device is given twice, as cpu and as cuda"),
        (["--max-steps", "0"], "--max-steps is now --max_steps (the old"),
        (["--model", "/nowhere"], "--model is now --model_args pretrained=... (the old"),
        (["--dtype", "int8"], "--dtype int8: want auto, float32, bfloat16 or float16"),
        (["--model_args", "edit_dataset=/nowhere"], "edit_dataset=/nowhere: no such file"),
    ],
)
def test_the_command_tells_mistakes(tmp_path, capsys, arguments, message):
    (tmp_path / "facts.jsonl").write_text(json.dumps(FACTS[0].record()) + "\n")
    facts = [] if "edit_dataset" in str(arguments) else ["--data", str(tmp_path / "facts.jsonl")]
    assert main(["train", "mend", *facts, "--output", str(tmp_path / "a"), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_the_old_spellings_are_read_with_a_notice(tmp_path, capsys):
    save_tiny(tmp_path / "model")
    write_facts(tmp_path / "facts.jsonl", FACTS)
    command = [
        "train", "mend", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "facts.jsonl"), "--device", "cpu",
        "--output", str(tmp_path / "a"), "--rank", "8", "--batch-size", "4", "--val-facts", "8", "--max-steps", "1",
        "--val-interval", "1", "--inner-params", "transformer.h.1.mlp.c_proj.weight",
    ]  # fmt: skip
    assert main(command) == 0
    told = capsys.readouterr().err
    assert "--model is now --model_args pretrained=...; --data is now --model_args edit_dataset=...;" in told
    assert "--max-steps is now --max_steps" in told
    assert load_archive(tmp_path / "a").training["settings"]["rank"] == 8
