"""The whole way by commands: edit, export, evaluate in the stock `hf` model, and get the edited model's results."""

from __future__ import annotations

import json

import pytest

from tests.conftest import ROOT
from tests.support.processes import python

pytestmark = pytest.mark.slow


def command(*words, cwd, status=0):
    done = python("-m", "lm_eval_edit", *words, path=ROOT, cwd=cwd, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr[-3000:]
    return done


def evaluate(cwd, output, model, model_args, *words):
    """(scores, responses) of one task."""
    command(
        "run", "--model", model, "--model_args", model_args, "--tasks", "edithurt_sst2", "--limit", 4, "--log_samples",
        "--batch_size", 4, "--output_path", output, *words, cwd=cwd,
    )  # fmt: skip
    (results,) = (cwd / output).rglob("results_*.json")
    (samples,) = (cwd / output).rglob("samples_*.jsonl")
    responses = [json.loads(line)["resps"] for line in samples.read_text().splitlines()]
    return json.loads(results.read_text())["results"]["edithurt_sst2"], responses


def worlds(reference, name, tmp_path):
    """(model folder, facts, task data, options)."""
    (tmp_path / "data").mkdir()
    documents = [{"sentence": f"film {i} was fine", "label": i % 2, "idx": i} for i in range(4)]
    (tmp_path / "data" / "sst2.jsonl").write_text("\n".join(map(json.dumps, documents)))
    options = {"v_num_grad_steps": 10, "v_lr": 5.0, "clamp_norm_factor": 50, "context_templates": ["{}", "It is. {}"]}
    (tmp_path / "fast.yaml").write_text(json.dumps(options))  # strong edits: random weights hardly show others
    options = "editor=rome,n_edits=3,edit_layers=2,edit_config=fast.yaml"
    return str(reference / "models" / name), str(reference / "facts.json"), str(tmp_path / "data"), options


@pytest.mark.parametrize(("name", "forms"), [("gpt2-tiny", ["peft", "hf"]), ("llama-tiny", ["peft"])])
def test_scores_in_the_stock_engine_are_those_of_the_edited_model(reference, tmp_path, name, forms):
    model, facts, data, options = worlds(reference, name, tmp_path)
    ours = f"pretrained={model},{options},edit_dataset={facts},data_dir={data},edit_ledger=ledger"
    wanted = evaluate(tmp_path, "edited", "edited_hf", ours)
    metadata = ["--metadata", f"data_dir={data}"]
    unedited = evaluate(tmp_path, "unedited", "hf", f"pretrained={model}", *metadata)
    assert unedited[1] != wanted[1], "the edits must show"
    for form in forms:
        model_args = {"peft": f"pretrained={model},peft=peft", "hf": "pretrained=hf"}[form]
        said = command("export", "ledger", "--to", form, "-o", form, "--device", "cpu", cwd=tmp_path).stdout
        assert "checked on" in said and "evaluate: lm_eval --model hf" in said
        assert evaluate(tmp_path, f"via-{form}", "hf", model_args, *metadata) == wanted


def test_mistakes_are_told_together(tmp_path):
    done = command("export", "absent", "--check", "absent", "--to", "hf", "--dtype", "int4", cwd=tmp_path, status=1)
    assert "2 problems in the configuration" in done.stderr
    assert "--to: not with --check" in done.stderr and "--dtype int4: want auto" in done.stderr
