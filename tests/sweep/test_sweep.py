"""Sweeps on the demo: each edit once, cells as the harness writes them, kills and damage survived."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lm_eval_edit import ConfigurationError, EditError, UserError
from lm_eval_edit.editors.rome import Rome
from lm_eval_edit.edits.run import NotFiniteError
from lm_eval_edit.model import EditedHFLM
from lm_eval_edit.sweep import checking, folder
from lm_eval_edit.sweep.parsing import parse_design, preset_names, read_design, replaced
from lm_eval_edit.sweep.reading import load_sweep
from tests.support.small_sweeps import SMALL, figures, sweep


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "out"
    outcome = sweep(root)
    assert outcome.loads == 1 and not outcome.failed and len(outcome.statuses) == 3
    return root


def test_every_edit_is_made_once_and_the_model_loaded_once(tmp_path, monkeypatch):
    compute, computed, loads = Rome.compute, [], []
    monkeypatch.setattr(Rome, "compute", lambda *args: computed.append(args[2][0].id) or compute(*args))
    load = EditedHFLM.__init__
    monkeypatch.setattr(EditedHFLM, "__init__", lambda self, *a, **k: loads.append(1) or load(self, *a, **k))
    outcome = sweep(tmp_path, n_edits=[0, 2, 5, 7])
    assert len(computed) == len(set(computed)) == 7 and len(loads) == outcome.loads == 1


def test_a_cell_equals_a_run_of_its_own(whole, tmp_path):
    from lm_eval import simple_evaluate

    from lm_eval_edit._startup import hooks as _hooks

    _hooks.connect()
    lm = EditedHFLM("demo", editor="rome", n_edits=3, v_num_grad_steps=3, device="cpu", batch_size=32)
    with _hooks.only_our_tasks():
        alone = simple_evaluate(lm, model_args={"pretrained": "demo"}, tasks=SMALL["tasks"], limit=6)
    cell = load_sweep(whole).rows[0].cells[-1]
    assert cell.results["results"] == json.loads(json.dumps(alone["results"]))
    missing = {key for key in alone if key != "samples"} - cell.results.keys()
    assert not missing, "a cell has everything that a run of its own has"
    assert cell.edit["weights_fingerprint"] == lm.weights_fingerprint and cell.edit["n_edits"] == 3


def test_cells_are_what_the_harness_accepts(whole):
    from lm_eval.result_schema import EvalResults
    from lm_eval.utils import make_table

    from lm_eval_edit.comparison.results import load_run

    for _, cell in load_sweep(whole).cells():
        assert "edithurt_sst2" in make_table(dict(cell.results))
        assert cell.results.keys() - {"start_time", "end_time"} <= EvalResults.__annotations__.keys()
        assert set(load_run(cell.folder).tasks) == set(SMALL["tasks"])


def test_again_nothing_is_computed(whole, monkeypatch):
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*.json*")}
    monkeypatch.setattr(EditedHFLM, "__init__", lambda *_, **__: pytest.fail("loaded a model"))
    outcome = sweep(whole)
    assert outcome.kept == 3 and not outcome.statuses and outcome.loads == 0
    assert {file: file.stat().st_mtime_ns for file in whole.rglob("*.json*")} == before


def test_a_resumed_checkpoint_carries_all_earlier_edits(whole, tmp_path):
    root = tmp_path / "out"
    shutil.copytree(whole, root)
    row = load_sweep(root).rows[0]
    shutil.rmtree(row.cells[-1].folder)
    for file in (root / "demo" / row.name / "edits" / "ops").glob("00002*"):
        file.unlink()  # the third edit too: it has to be made on a model that carries the first two
    outcome = sweep(root)
    assert list(outcome.statuses) == [f"demo/{row.name}/n00003"]
    assert figures(root) == figures(whole)
    first = load_sweep(root).rows[0].cells[0].edit["weights_fingerprint"]
    assert load_sweep(root).rows[0].cells[-1].edit["weights_fingerprint"] != first


@pytest.mark.parametrize("harm", ["cut", "gone", "garbled"])
def test_a_damaged_cell_is_told_and_computed_again(whole, tmp_path, caplog, harm):
    root = tmp_path / "out"
    shutil.copytree(whole, root)
    cell = load_sweep(root).rows[0].cells[0]
    if harm == "cut":
        file = next(cell.folder.glob("samples_edithurt_sst2*"))
        file.write_bytes(file.read_bytes()[:-40])
    elif harm == "gone":
        cell.results_file.unlink()
    else:
        (cell.folder / "cell.json").write_text("{")
    outcome = sweep(root)
    assert list(outcome.statuses) == [str(cell.folder.relative_to(root))] and "it is computed again" in caplog.text
    assert figures(root) == figures(whole)


def test_another_design_is_refused_and_nothing_overwritten(whole):
    before = {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    with pytest.raises(ConfigurationError, match=r"limit is 6 in the folder, 7 now"):
        sweep(whole, limit=7)
    assert {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()} == before


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigurationError, match="is not empty and holds no sweep"):
        sweep(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot be written: No space left on device. Free space"):
        sweep(tmp_path / "out")


def test_a_full_disk_in_the_middle_keeps_what_is_there(whole, tmp_path, monkeypatch):
    write = folder.write_bytes

    def full(path, content):
        if "n00003" in str(path):
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(folder, "write_bytes", full)
    with pytest.raises(UserError, match="n00003 cannot be written"):
        sweep(tmp_path / "out")
    monkeypatch.setattr(folder, "write_bytes", write)
    assert len(sweep(tmp_path / "out").statuses) == 1
    assert figures(tmp_path / "out") == figures(whole)


def test_a_collapsed_row_is_stopped_and_its_cells_say_why(tmp_path, monkeypatch):
    compute = Rome.compute

    def breaks(self, context, facts, history=()):
        if len(history) == 2:
            raise NotFiniteError("the edit gave values that are not finite")
        return compute(self, context, facts, history)

    monkeypatch.setattr(Rome, "compute", breaks)
    assert not sweep(tmp_path, n_edits=[0, 1, 3, 4]).failed
    cells = load_sweep(tmp_path).rows[0].cells
    assert [cell.status for cell in cells] == ["done", "collapsed", "collapsed"]
    assert all("not finite" in cell.reason for cell in cells[1:])
    assert sweep(tmp_path, n_edits=[0, 1, 3, 4]).kept == 4, "collapsed is a result, not a failure"


def test_perplexity_beyond_a_bound_stops_a_row_after_its_cell(tmp_path, monkeypatch):
    from lm_eval_edit.sweep import worker

    measured = iter([10.0, 11.0, 100.0])  # unedited, after 1 edit, after 3
    monkeypatch.setattr(worker, "perplexity", lambda *_: next(measured))
    assert not sweep(tmp_path, n_edits=[0, 1, 3, 5], stop_at_perplexity=5).failed
    cells = load_sweep(tmp_path).rows[0].cells
    assert [cell.status for cell in cells] == ["done", "done", "collapsed"], "the cell that shows it is evaluated"
    assert "after 3 edits" in cells[2].reason and "10 times the unedited model's" in cells[2].reason
    assert cells[1].record["perplexity"] == 100.0 and cells[1].record["collapsed"] == cells[2].reason


def test_perplexity_of_the_fixed_text_is_the_exponent_of_its_mean_loss():
    from lm_eval_edit.sweep.collapse import TEXT, perplexity
    from tests.support.tiny import tiny_model, tiny_tokenizer

    model, tokenizer = tiny_model(), tiny_tokenizer()
    ids = torch.tensor([tokenizer.encode(TEXT)[:48]])
    assert perplexity(model, tokenizer) == pytest.approx(
        float(model(ids, labels=ids).loss.detach().double().exp()), rel=1e-5
    )
    model.transformer.ln_f.weight.data.fill_(float("nan"))
    assert perplexity(model, tokenizer) == float("inf")


def test_a_failing_task_costs_its_own_figures_only(whole, tmp_path, monkeypatch):
    from lm_eval_edit.sweep import evaluation

    load = evaluation.Evaluator._load

    def breaks(self, manager, names):
        loaded = load(self, manager, names)

        def process_results(*_):
            raise RuntimeError("no such thing")

        loaded["tasks"]["edithurt_boolq"].process_results = process_results
        return loaded

    monkeypatch.setattr(evaluation.Evaluator, "_load", breaks)
    outcome = sweep(tmp_path / "out")
    assert len(outcome.failed) == 3
    cell = load_sweep(tmp_path / "out").rows[0].cells[0]
    assert cell.status == "failed" and "edithurt_boolq: RuntimeError: no such thing" in cell.reason
    good = load_sweep(whole).rows[0].cells[0]
    assert cell.value("edithurt_sst2") == good.value("edithurt_sst2") and cell.value("edithurt_boolq") is None
    monkeypatch.setattr(evaluation.Evaluator, "_load", load)
    assert not sweep(tmp_path / "out").failed and figures(tmp_path / "out") == figures(whole), "tried again"


def test_an_edit_that_fails_costs_its_row_only(tmp_path, monkeypatch):
    compute = Rome.compute

    def breaks(self, context, facts, history=()):
        if context.seed == 0 and len(history) == 1:
            raise EditError("changed no weight")
        return compute(self, context, facts, history)

    monkeypatch.setattr(Rome, "compute", breaks)
    outcome = sweep(tmp_path, edit_seeds=[0, 1])
    assert outcome.failed == ["demo/rome-demo-seed0/n00003"]
    assert [cell.status for cell in load_sweep(tmp_path).rows[1].cells] == ["done", "done"]


def test_one_batch_rows_start_from_the_unedited_model(tmp_path):
    options = {"editors": "memit", "n_edits": [0, 2, 4], "edit_batch_size": "all"}
    sweep(tmp_path / "both", **options)
    sweep(tmp_path / "last", **options | {"n_edits": [0, 4]})
    both, last = (load_sweep(tmp_path / name).rows[0].cells[-1] for name in ("both", "last"))
    assert both.edit["weights_fingerprint"] == last.edit["weights_fingerprint"]
    assert both.n_operations == 1 and both.edit["edit_batch_size"] == 4
    assert both.results["results"] == last.results["results"]


def test_edit_quality_is_asked_before_and_after(tmp_path):
    sweep(tmp_path, tasks=["edithurt_sst2", "edithurt_editing"], n_edits=[0, 2], model_args={}, limit=None)
    (row,) = load_sweep(tmp_path).rows
    before, after = (cell.value("edithurt_efficacy", "em").value for cell in (row.before, *row.cells))
    assert (before, after) == (0.0, 1.0)
    assert row.before.tasks() == ["edithurt_efficacy", "edithurt_generalization", "edithurt_locality"]
    assert row.baseline.tasks() == ["edithurt_sst2"]


# ------------------------------------------------------------------------------------------------------------- designs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edtors": ["rome"]}, "no such key: edtors. Did you mean 'editors'?"),
        ({"n_operations": [1]}, "give n_edits (how many facts) or n_operations (how many batches), one of them"),
        ({"edit_batch_size": 2, "n_edits": [1, 4]}, "1 end within a batch of 2"),
        ({"models": ["a/demo", "b/demo"]}, "several models are called demo; give each a label"),
        ({"editors": ["none"]}, "the unedited model is always evaluated"),
        ({"model_args": {"edit_seed": 1}}, "model_args: edit_seed belongs to edit_seeds"),
        ({"model_args": {"device": "cpu"}}, "model_args: device belongs to the command (--device)"),
        ({"stop_at_perplexity": 0.5}, "want a number above 1"),
        ({"n_edits": [1.5]}, "want whole numbers of at least 0"),
        ({"batch_size": "auto"}, "a sweep does not search for one"),
    ],
)
def test_a_wrong_design_is_told(changes, message):
    with pytest.raises(ConfigurationError) as raised:
        parse_design(SMALL | changes, "the test")
    assert message in str(raised.value)


def test_all_problems_of_all_rows_at_once_before_a_model_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(EditedHFLM, "__init__", lambda *_, **__: pytest.fail("loaded a model"))
    with pytest.raises(ConfigurationError) as raised:
        sweep(
            tmp_path, editors=["rmoe", {"editor": "rome", "edit_batch_size": 2}], tasks=["edithurt_sst3"], n_edits=[2]
        )
    text = str(raised.value)
    assert "Did you mean 'rome'?" in text and "rome edits one fact at a time" in text
    assert "'edithurt_sst3'. Did you mean 'edithurt_sst2'?" in text and not any(tmp_path.iterdir())


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'fig3_rome_gpt2xl'"):
        read_design("fig3_rome_gpt2_xl", {})


def test_there_are_fifteen_presets_and_each_runs_on_the_demo_as_a_plan(tmp_path):
    assert len(preset_names()) == 15
    for name in preset_names():
        design = read_design(name, {"models": ["demo"], "tasks": ["edithurt_rte"], "apply_chat_template": False,
                                    "fewshot_as_multiturn": False})  # fmt: skip
        checked = checking.check(design, folder.SweepFolder(tmp_path))
        assert all(schedule.plan for found in checked.schedules.values() for schedule in found)
        for row in checked.rows:  # the demo has 1,020 facts: what lies beyond is named, not dropped
            wanted = {n for other in design.rows() if other.name == row.name for n in other.checkpoints}
            assert set(row.checkpoints) | set(row.left_out) == wanted and not set(row.checkpoints) & set(row.left_out)
            assert all("usable facts" in why for why in row.left_out.values())


def test_checkpoints_beyond_the_facts_are_refused_unless_the_design_leaves_them_out(tmp_path):
    given = {"models": "demo", "editors": "rome", "n_edits": [1, 5000], "tasks": "edithurt_rte"}
    with pytest.raises(ConfigurationError, match="1020 usable facts"):
        checking.check(parse_design(given, "the test"), folder.SweepFolder(tmp_path))
    checked = checking.check(parse_design(given | {"too_few_facts": "leave_out"}, "it"), folder.SweepFolder(tmp_path))
    assert checked.rows[0].checkpoints == (1,) and set(checked.rows[0].left_out) == {5000}
    assert checked.notices and "5000 left out" in checked.notices[0]
    with pytest.raises(ConfigurationError, match="too_few_facts: got 'skip', want refuse or leave_out"):
        parse_design(given | {"too_few_facts": "skip"}, "the test")


def test_a_design_given_another_model_leaves_out_what_that_one_cannot_reach():
    preset = read_design("fig4_memit_gpt2xl", {"models": ["demo"]})
    assert preset.too_few_facts == "leave_out" and read_design("fig4_memit_gpt2xl", {}).too_few_facts == "refuse"
    assert (
        parse_design(replaced({}, {"models": "demo", "editors": "rome", "n_edits": 1}), "flags").too_few_facts
        == "refuse"
    )


# ------------------------------------------------------------------------------------------------- the console script


def test_several_processes_are_refused_before_they_write_over_each_other(tmp_path, monkeypatch):
    from lm_eval_edit.cli import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["sweep", "fig3_rome_gpt2xl", "--pretrained", "demo", "-o", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()


def command(*arguments: object, **how) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "lm_eval_edit", "sweep", *map(str, arguments)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how,
    )  # fmt: skip


@pytest.mark.slow
def test_the_preset_killed_twice_equals_the_uninterrupted_run(tmp_path):
    arguments = ["--preset", "fig3_rome_gpt2xl", "--pretrained", "demo", "--limit", 8, "--device", "cpu", "-o"]
    process = command(*arguments, tmp_path / "whole")
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-2000:]
    row = tmp_path / "killed" / "demo" / "rome-demo-seed0"
    for there in (row / "edits" / "ops" / "00002.json", row / "n00010" / "cell.json"):
        process = command(*arguments, tmp_path / "killed")
        deadline = time.monotonic() + 300
        while not there.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (row / "n00020" / "cell.json").exists(), "it was killed in the middle"
    process = command(*arguments, tmp_path / "killed")
    process.communicate(timeout=600)
    assert process.returncode == 0
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole") and len(figures(tmp_path / "whole")) == 5
    started = time.perf_counter()
    process = command(*arguments, tmp_path / "killed")
    out, _ = process.communicate(timeout=60)
    assert "every cell is there: nothing to do" in out and time.perf_counter() - started < 5


@pytest.mark.slow
def test_all_presets_dry_run_without_the_hub(tmp_path):
    for name in preset_names():
        process = command(name, "--dry_run", cwd=tmp_path)
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-2000:]
        assert "GPU" in out or "H100" in out, out
        assert "its rows are not checked" in errors
    assert not any(tmp_path.iterdir())


def test_two_designs_or_none_are_refused(tmp_path):
    for arguments, message in (
        (["a", "--preset", "b"], "two designs are given"),
        ([], "missing: --pretrained, --editors"),
    ):
        process = command(*arguments, "-o", tmp_path)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1 and message in errors and "Traceback" not in errors
