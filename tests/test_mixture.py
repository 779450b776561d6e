"""A trained mixture of experts, edited end to end: what it knows, what edits do to it, every command on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_edit import UserError, edit_model, load_facts
from lm_eval_edit.demo import evaluate, mixture
from lm_eval_edit.models.architecture import Architecture
from tests.support.console_scripts import lm_eval, results_of
from tests.support.demo_mixture import RECIPE, made

pytestmark = pytest.mark.slow

DOWN = "model.layers.0.mlp.experts.down_proj"


@pytest.fixture(scope="module")
def folder() -> Path:
    return made()


def schedule(folder: Path, **more: object) -> dict[str, object]:
    """20 facts in one batch. The weight of the second moments is chosen for this model; no preset fits it."""
    return {
        "pretrained": folder, "editor": "memit", "n_edits": 20, "edit_batch_size": 20, "edit_seed": 2, "edit_layers": 0,
        "mom2_update_weight": 100, "edit_dataset": folder / mixture.FACTS, "edit_corpus": folder / mixture.CORPUS,
        "edit_corpus_tokens": 50_000,
    } | more  # fmt: skip


def joined(options: dict[str, object]) -> str:
    return ",".join(f"{name}={value}" for name, value in options.items())


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """The stock command: 20 edits, the suite and the tasks about the edits."""
    where = tmp_path_factory.mktemp("run")
    lm_eval(
        "--model", "edited_hf", "--model_args", joined(schedule(folder, edit_ledger="ledger")),
        "--tasks", "edithurt_suite,edithurt_editing", "--metadata", '{"data_dir": "demo"}', "--limit", 20,
        "--output_path", "out", "--batch_size", 32, cwd=where,
    )  # fmt: skip
    return where


def test_it_is_small_and_knows_its_facts(folder):
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 10 * 2**20
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = Architecture.discover(model).mixtures[0]
    assert (found.n_experts, found.top_k, found.down) == (RECIPE.experts, RECIPE.picked, DOWN)
    tokenizer, known = AutoTokenizer.from_pretrained(folder), RECIPE.known()
    assert [json.loads(line) for line in (folder / mixture.FACTS).read_text().splitlines()] == known
    for form in (None, "-1"):  # the prompt itself, and a wording that training has not seen
        right = evaluate.recalled(model, tokenizer, known[::3], form=form)
        assert sum(right) >= 0.95 * len(right)


def test_memit_edits_twenty_facts_and_the_suite_shows_what_it_cost(run):
    results = results_of(run / "out")
    edit, scores = results["config"]["edit"], results["results"]
    assert scores["edithurt_efficacy"]["score,none"] >= 0.9
    assert scores["edithurt_generalization"]["score,none"] >= 0.5 and scores["edithurt_locality"]["score,none"] >= 0.8
    assert edit["n_edits"] == 20 and edit["guards"]["edits_took_ok"] and list(edit["parameters"]) == [DOWN]
    whole = edit["parameters"][DOWN]
    slices = whole.pop("slices")
    assert 0 < len(slices) <= RECIPE.experts and edit["ranks"] == [{DOWN: 20}]
    assert sum(one["delta_norm"] ** 2 for one in slices.values()) == pytest.approx(whole["delta_norm"] ** 2)
    suite = [name for name in scores if name.startswith("edithurt_") and "score,none" in scores[name]]
    assert len(suite) >= 9 and 0 < scores["edithurt_suite"]["score,none"] < 1
    learnt = [scores[f"edithurt_{task}"]["score,none"] for task in ("rte", "boolq", "sst2")]
    assert min(learnt) > 0.5, "what it had learnt beside the facts"


def test_the_checkpoint_exported_answers_as_the_edited_model_did(run, folder, tmp_path):
    lm_eval("export", run / "ledger", "--to", "hf", "-o", tmp_path / "hf", cwd=run, program="lm-eval-edit")
    lm_eval(
        "--model", "hf", "--model_args", f"pretrained={tmp_path / 'hf'},dtype=float32", "--tasks",
        "edithurt_efficacy,edithurt_locality", "--limit", 20, "--output_path", "out", cwd=tmp_path,
    )  # fmt: skip
    before, after = results_of(run / "out")["results"], results_of(tmp_path / "out")["results"]
    for task in ("edithurt_efficacy", "edithurt_locality"):
        assert after[task]["score,none"] == before[task]["score,none"]
    refused = lm_eval("export", run / "ledger", "--to", "peft", "-o", tmp_path / "peft", cwd=run,
                      program="lm-eval-edit", ok=False)  # fmt: skip
    assert "all experts in one parameter" in refused.stderr and "to=hf" in refused.stderr


def test_a_sweep_its_report_and_a_comparison(folder, tmp_path):
    given, own = schedule(folder), "edit_batch_size=20,mom2_update_weight=100"
    options = {name: given[name] for name in ("edit_layers", "edit_corpus", "edit_corpus_tokens")}
    lm_eval(
        "sweep", "-o", "sweep", "--pretrained", f"{folder},label=mixture", "--datasets", folder / mixture.FACTS,
        "--editors", f"memit,{own}", f"random,like=memit,{own}",
        "--n_edits", 0, 20, "--tasks", "edithurt_rte", "edithurt_gsm8k", "edithurt_efficacy", "--limit", 10,
        "--model_args", *(f"{name}={value}" for name, value in options.items()), "data_dir=demo",
        cwd=tmp_path, program="lm-eval-edit",
    )  # fmt: skip
    cells = {file.parent.relative_to(tmp_path): results_of(file.parent) for file in tmp_path.rglob("results_*.json")}
    efficacy = {
        str(cell): found["results"]["edithurt_efficacy"]["score,none"]
        for cell, found in cells.items() if "edithurt_efficacy" in found["results"] and cell.name == "n00020"
    }  # fmt: skip
    assert len(efficacy) == 2
    memit, control = sorted(efficacy.items(), key=lambda entry: "random" in entry[0])
    assert memit[1] >= 0.8 and control[1] <= 0.3, "updates of that size in random directions state no new fact"
    lm_eval("report", "sweep", cwd=tmp_path, program="lm-eval-edit")
    assert "down_proj" in (tmp_path / "sweep" / "report.html").read_text(encoding="utf-8")
    (unedited,) = (tmp_path / "sweep").rglob("unedited")
    done = lm_eval(
        "compare", unedited, tmp_path / memit[0], "--tasks", "edithurt_rte,edithurt_gsm8k", cwd=tmp_path,
        program="lm-eval-edit",
    )  # fmt: skip
    assert "edithurt_rte" in done.stdout and "edithurt_gsm8k" in done.stdout


def test_wrong_configurations_have_their_errors(folder, tmp_path):
    wrong = schedule(folder, edit_layers=7, edit_experts="both")
    del wrong["edit_corpus"]
    done = lm_eval("--model", "edited_hf", "--model_args", joined(wrong), "--tasks", "edithurt_efficacy", cwd=tmp_path,
                   ok=False)  # fmt: skip
    assert "edit_experts='both': want shared or routed" in done.stderr
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    facts = list(load_facts(str(folder / mixture.FACTS), tokenizer))[:1]
    for editor, says in (
        ("kn", r"kn cannot edit the experts of layers 0, 1, 2: .*Methods that can are editor=.*memit"),
        ("memit", r"layer 7 is out of range: the model has layers 0 to 2"),
    ):
        with pytest.raises(UserError, match=says):
            edit_model(model, tokenizer, facts, editor, options={"layers": [7]} if editor == "memit" else {})
