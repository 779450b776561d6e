"""What release 0.1 wrote is still read: ledgers to the bit, results, a sweep's folder, a frozen baseline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_edit import demo, edit_model, load_facts
from lm_eval_edit.cli import main
from lm_eval_edit.comparison.results import load_run
from lm_eval_edit.sweep.reading import load_sweep

GOLDEN = Path(__file__).parent / "golden" / "release_0_1"
FINGERPRINTS = json.loads((GOLDEN / "fingerprints.json").read_text())


@pytest.mark.parametrize(
    ("folder", "editor", "options"),
    [("ledger_alphaedit", "alphaedit", {}), ("ledger_kn", "kn", {}), ("ledger_rect", "rect", {"over": "rome"})],
)
def test_a_ledger_is_continued_without_computing_anything_again(folder, editor, options, tmp_path):
    shutil.copytree(GOLDEN / folder, tmp_path / "ledger")
    before = {file: file.read_bytes() for file in (tmp_path / "ledger" / "ops").iterdir()}
    stored = [json.loads(content) for file, content in sorted(before.items()) if file.suffix == ".json"]
    ids = [fact["id"] for operation in stored for fact in operation["facts"]]
    by_id = {fact.id: fact for fact in load_facts("demo")}
    model = AutoModelForCausalLM.from_pretrained(demo.CHECKPOINT).eval()
    tokenizer = AutoTokenizer.from_pretrained(demo.CHECKPOINT)
    ledger = edit_model(
        model, tokenizer, [by_id[i] for i in ids], editor,
        edit_batch_size=len(stored[0]["facts"]), options=options, second_moments=demo.SECOND_MOMENTS,
        ledger=tmp_path / "ledger", progress=False,
    )  # fmt: skip
    assert ledger.fingerprint() == FINGERPRINTS[folder]
    assert {file: file.read_bytes() for file in (tmp_path / "ledger" / "ops").iterdir()} == before


def test_the_command_that_wrote_a_ledger_goes_on_with_it(tmp_path, monkeypatch):
    from lm_eval_edit.model import EditedHFLM

    shutil.copytree(GOLDEN / "ledger", tmp_path / "ledger")
    before = {file: file.read_bytes() for file in (tmp_path / "ledger" / "ops").iterdir()}
    model = EditedHFLM("demo", editor="rome", n_edits=2, edit_ledger=str(tmp_path / "ledger"), device="cpu")
    assert model.weights_fingerprint == FINGERPRINTS["ledger"]
    assert {file: file.read_bytes() for file in (tmp_path / "ledger" / "ops").iterdir()} == before


def test_results_are_read_and_pass_the_gate_that_was_frozen_from_them(capsys):
    run = load_run(GOLDEN / "results")
    assert {task for task, _ in run.samples} == {"edithurt_sst2", "edithurt_efficacy"}
    assert main(["check", "--baseline", str(GOLDEN / "baseline.json"), "--current", str(GOLDEN / "results"),
                 "--max-drop", "0.5"]) == 0  # fmt: skip
    assert "edithurt_sst2" in capsys.readouterr().out


def test_a_sweeps_folder_is_read(tmp_path):
    shutil.copytree(GOLDEN / "sweep", tmp_path / "sweep")
    sweep = load_sweep(tmp_path / "sweep")
    (row,) = sweep.rows
    assert [cell.n_edits for cell in row.cells] == [1, 2]
    assert main(["report", str(tmp_path / "sweep"), "-o", str(tmp_path / "report.html")]) == 0
    assert "edithurt_sst2" in (tmp_path / "report.html").read_text()
