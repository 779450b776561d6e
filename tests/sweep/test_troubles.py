"""Sweeps in trouble: what a killed run leaves, what two runs do to each other, what fails, what cannot be meant."""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from lm_eval_edit import ConfigurationError, UserError
from lm_eval_edit.editors.rome import Rome
from lm_eval_edit.edits import ledger
from lm_eval_edit.errors import CannotWriteError
from lm_eval_edit.model import EditedHFLM
from lm_eval_edit.sweep import checking, engine, folder
from lm_eval_edit.sweep.estimate import estimate_lines
from lm_eval_edit.sweep.evaluation import find_tasks
from lm_eval_edit.sweep.parsing import KEYS, preset_names, read_design
from lm_eval_edit.sweep.reading import load_sweep
from tests.conftest import ROOT
from tests.support.small_sweeps import SMALL, figures, small, sweep


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "out"
    assert not sweep(root).failed
    return root


@pytest.mark.parametrize("left", [".sweep.json.abc123", "README.md"])
def test_a_run_killed_while_it_made_the_folder_is_taken_up(tmp_path, left):
    if left == "README.md":
        write_sweep_files(tmp_path, "sweep.json")  # everything but the description, which comes after it
    else:
        (tmp_path / left).write_text("{")
    outcome = sweep(tmp_path, n_edits=[1])
    assert not outcome.failed and (tmp_path / "README.md").exists()


def write_sweep_files(root: Path, *names: str) -> None:
    checked = checking.check(small(n_edits=[1]), folder.SweepFolder(root))
    checked.folder.claim(checked.design, checked.rows, checked.about_schedule, about_model=bool(checked.general))
    for file in root.iterdir():
        if file.name not in names:
            file.unlink()


def test_a_temporary_file_in_the_edits_is_no_foreign_ledger(whole, tmp_path):
    root = tmp_path / "out"
    shutil.copytree(whole, root)
    row = load_sweep(root).rows[0]
    for made in (root / "demo" / row.name).iterdir():
        shutil.rmtree(made)
    edits = root / "demo" / row.name / "edits"
    edits.mkdir()
    (edits / ".ledger.json.abc123").write_text("{")
    assert not sweep(root).failed and figures(root) == figures(whole)


def test_a_folder_is_written_by_one_sweep_at_a_time(tmp_path):
    code = (
        "import sys; from lm_eval_edit.sweep.folder import SweepFolder\n"
        "with SweepFolder(sys.argv[1]).lock():\n"
        "    print('mine', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, **pipes) as other:
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(UserError, match="another sweep is writing"):
            sweep(tmp_path, n_edits=[1])
        other.kill()  # what holds it is gone, and so is its hold
    assert not sweep(tmp_path, n_edits=[1]).failed


@pytest.mark.parametrize(("code", "runs"), [(errno.ENOLCK, True), (errno.EROFS, False)])
def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, caplog, code, runs):
    def refuse(*_, **__):
        raise OSError(code, "No locks available")

    monkeypatch.setattr("lm_eval_edit._support.locks.FileLock.acquire", refuse)
    with nullcontext() if runs else pytest.raises(CannotWriteError), folder.SweepFolder(tmp_path).lock():
        pass
    assert ("start no other sweep" in caplog.text) == runs


def test_all_unedited_cells_know_nothing_of_the_rows_before_them(tmp_path):
    editors = [{"editor": "rome", "v_lr": 5.0, "label": "fast"}, {"editor": "rome", "label": "slow"}]
    sweep(tmp_path, editors=editors, n_edits=[1], tasks=["edithurt_sst2", "edithurt_efficacy"], limit=1)
    unedited = [cell for _, cell in load_sweep(tmp_path).cells() if cell.n_edits == 0]
    assert len(unedited) == 3
    assert len({cell.edit["weights_fingerprint"] for cell in unedited}) == 1
    assert {cell.edit["editor"] for cell in unedited} == {"none"}


def test_a_task_that_cannot_be_loaded_costs_no_other(whole, tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "broken.yaml").write_text(
        "task: broken\ndataset_path: json\ndataset_kwargs: {data_files: {test: nowhere.jsonl}}\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: x\ndoc_to_target: y\nmetric_list: [{metric: exact_match}]\n"
    )
    given = {"tasks": [*SMALL["tasks"], "broken"], "include_path": str(tmp_path / "tasks")}
    outcome = sweep(tmp_path / "out", **given, n_edits=[1])
    assert len(outcome.failed) == 2
    for _, cell in load_sweep(tmp_path / "out").cells():
        assert cell.status == "failed" and cell.reason.startswith("broken: ")
        assert set(SMALL["tasks"]) <= cell.results["results"].keys()


def test_a_failure_leaves_the_figures_of_an_earlier_partial_one(tmp_path):
    design = small(n_edits=[1])
    held, cell = folder.SweepFolder(tmp_path), folder.Cell("demo", None, 0, design.tasks)
    record = {"status": folder.FAILED, "reason": "broken: it is", "perplexity": 2.0, "collapsed": None}
    held.write(cell, record, {"results": {}}, {"edithurt_sst2": [{"doc_id": 0}]})
    before = sorted(held.path(cell).iterdir())
    held.write(cell, record | {"reason": "no memory"})
    assert sorted(held.path(cell).iterdir()) == before
    held.write(cell, record | {"status": folder.DONE, "reason": None}, {"results": {}})
    assert sorted(held.path(cell).iterdir()) != before


def test_a_collapse_is_remembered_where_the_evaluation_failed_too(tmp_path, monkeypatch):
    from lm_eval_edit.sweep import worker

    values = iter([10.0, 1e9, 1e9])
    monkeypatch.setattr(worker, "perplexity", lambda *_: next(values))
    run = worker.Evaluator.run
    monkeypatch.setattr(
        worker.Evaluator,
        "run",
        lambda self, args, **how: {}["gone"] if args["editor"] == "rome" else run(self, args, **how),
    )
    outcome = sweep(tmp_path, n_edits=[1, 2], stop_at_perplexity=5)
    assert [outcome.statuses[path] for path in sorted(outcome.statuses)] == ["failed", "collapsed", "done"]


def test_an_evaluation_of_other_weights_than_asked_for_is_refused(tmp_path):
    from lm_eval_edit.sweep import worker

    checked = checking.check(small(n_edits=[1, 2]), folder.SweepFolder(tmp_path))
    claim = engine.claimed(checked)
    with claim:
        one = worker.Worker(checked, checked.design.models[0], "cpu")
        row = checked.rows[0]
        schedule = checked.schedules["demo", row.name][0]
        reached = one.edit_to(row, schedule, 1)
        with pytest.raises(RuntimeError, match="after 2 operations, 1 are applied"):
            one.evaluate(checked.edited(row)[1], reached)


def test_a_model_is_gone_before_the_next_one_is_loaded(tmp_path, monkeypatch):
    import weakref

    alive, seen = [], []
    load = EditedHFLM.__init__

    def remember(self, *args, **how):
        seen.append(sum(model() is not None for model in alive))
        load(self, *args, **how)
        alive.append(weakref.ref(self.model))

    monkeypatch.setattr(EditedHFLM, "__init__", remember)
    models = [{"pretrained": "demo", "label": label} for label in ("a", "b")]
    sweep(tmp_path, models=models, n_edits=[1], limit=1)
    assert seen == [0, 0]


def test_a_model_that_explodes_leaves_json_that_is_json(tmp_path, monkeypatch):
    from lm_eval_edit.sweep import worker

    monkeypatch.setattr(worker, "perplexity", lambda *_: math.inf)
    sweep(tmp_path, n_edits=[1], limit=1)
    for file in tmp_path.glob("demo/**/cell.json"):
        json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(name))


def test_a_corpus_that_cannot_be_had_is_no_full_disk(tmp_path, monkeypatch):
    def offline(*_):
        raise UserError("the corpus cannot be fetched") from ConnectionError("offline")

    monkeypatch.setattr(Rome, "compute", offline)
    outcome = sweep(tmp_path, editors=["rome", {"editor": "ft", "num_steps": 1}], n_edits=[1], limit=1, model_args={})
    assert list(outcome.statuses.values()) == ["done", "failed", "done"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"models": [{"pretrained": "demo", "batch_size": 4}]}, "models: demo: batch_size belongs to batch_size"),
        ({"editors": [{"editor": "rome", "n_edits": 7}]}, "editors: rome-n_edits_7: n_edits belongs to n_edits"),
        ({"model_args": {"device": "cuda:7"}}, "model_args: device belongs to the command"),
        ({"edit_seeds": []}, "edit_seeds: want at least one"),
        ({"datasets": []}, "datasets: want at least one"),
        ({"edit_batch_size": []}, "edit_batch_size: want at least one"),
        ({"editors": [{"editor": "rome", "edit_batch_size": []}]}, "editors: want at least one"),
        ({"models": 5}, "models: got 5, want a word, or a mapping with pretrained"),
        ({"editors": []}, "editors: want at least one"),
    ],
)
def test_what_a_design_may_not_say(given, said):
    with pytest.raises(ConfigurationError) as raised:
        small(**given)
    assert said in str(raised.value)


def test_a_disk_that_is_full_while_edits_are_stored_ends_the_sweep(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ledger, "save_deltas", full)
    with pytest.raises(CannotWriteError, match=r"edits cannot be written: No space left on device\. Free space"):
        sweep(tmp_path, n_edits=[1, 2], limit=1)
    assert [cell.status for _, cell in load_sweep(tmp_path).cells()] == ["done", None, None]


def test_the_estimate_counts_what_is_left_out_for_nothing(tmp_path):
    lines = []
    for counts in ([1, 2], [1, 2, 5000]):
        design = small(n_edits=counts, too_few_facts="leave_out")
        lines.append(estimate_lines(checking.check(design, folder.SweepFolder(tmp_path))))
    assert lines[0] == lines[1]


def test_what_loads_the_model_is_no_option_of_one_editor(tmp_path):
    with pytest.raises(ConfigurationError, match="editors: rome-dtype_bfloat16: dtype is about loading the model"):
        checking.check(small(editors=[{"editor": "rome", "dtype": "bfloat16"}]), folder.SweepFolder(tmp_path))


def test_tasks_are_found_whatever_the_demo_has(tmp_path):
    """The index knows no model yet; what the demo lacks (a chat template, facts with inverse questions) others have."""
    names = ("edithurt_wild_chat", "edithurt_reversed")
    assert find_tasks(names, None) == ((), names)
    with pytest.raises(ConfigurationError, match=r"edithurt_wild_chat.*no chat template"):
        checking.check(small(tasks=list(names)), folder.SweepFolder(tmp_path))  # of the demo itself it is told


def test_a_models_own_arguments_win(tmp_path):
    design = small(models=[{"pretrained": "demo", "dtype": "bfloat16"}], model_args={"dtype": "float32"})
    assert checking.loading_args(design, design.models[0])["dtype"] == "bfloat16"
    assert checking.row_args(design, design.rows()[0], 1)["dtype"] == "bfloat16"


@pytest.mark.parametrize("label", ["..", ".", "../x", "/"])
def test_no_label_leaves_the_folder(label):
    design = small(models=[{"pretrained": "demo", "label": label}])
    assert (Path("/a/b") / design.models[0].label).resolve().parent == Path("/a/b")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--editors", "rome,memit"), "--editors rome,memit: memit is no option name=value"),
        (("--editors", "rome", "--device", "gpuu"), "--device gpuu"),
        (("--editors", "rome", "--device", "cuda:99"), "--device cuda:99"),
    ],
)
def test_flags_that_cannot_be_meant(flags, said, tmp_path, capsys):
    from lm_eval_edit.cli import main

    out = tmp_path / "out"
    assert main(["sweep", "--pretrained", "demo", "--n_edits", "1", "-o", str(out), *flags]) == 1
    assert said in capsys.readouterr().err and not out.exists()


def test_a_dry_run_looks_at_no_folder_that_was_not_named(tmp_path, monkeypatch, capsys):
    from lm_eval_edit.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "thesis.tex").write_text("mine")
    assert main(["sweep", "fig3_rome_gpt2xl", "--pretrained", "demo", "--dry_run"]) == 0
    assert "5 cells in 1 rows" in capsys.readouterr().out


def test_a_dry_run_shows_the_cells_also_where_something_is_missing(tmp_path, capsys):
    from lm_eval_edit.cli import main

    flags = ("--pretrained", "demo", "--editors", "mend,archive=nowhere.safetensors", "--n_edits", "1", "--dry_run")
    assert main(["sweep", *flags]) == 1
    printed = capsys.readouterr()
    assert "mend-archive_nowhere.safetensors-demo-seed0: n_edits 1" in printed.out and "estimate" in printed.out
    assert "nowhere.safetensors" in printed.err
    assert main(["sweep", *flags[:-1], "-o", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()


def test_a_flag_changes_the_model_arguments_it_names():
    design = read_design("fig4_memit_gpt2xl", {"model_args": {"dtype": "bfloat16"}})
    assert design.model_args == {"edit_corpus": "wikitext", "dtype": "bfloat16"}


def test_a_labelled_demo_is_the_demo_too():
    assert read_design("fig3_rome_gpt2xl", {"models": [{"pretrained": "demo", "label": "x"}]}).datasets == ("demo",)


def test_a_summary_that_was_never_written_is_written(whole, tmp_path, capsys):
    from lm_eval_edit.cli import main

    root = tmp_path / "out"
    shutil.copytree(whole, root)
    (root / "summary.csv").unlink(missing_ok=True)
    design = tmp_path / "design.yaml"
    held = json.loads((root / "sweep.json").read_text())["design"]
    held["models"], held["editors"] = [model["args"] for model in held["models"]], [m["args"] for m in held["editors"]]
    design.write_text(json.dumps(held))
    assert main(["sweep", str(design), "-o", str(root)]) == 0
    assert "nothing to do" in capsys.readouterr().out and (root / "summary.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", preset_names())
def test_each_preset_runs_on_the_demo(name, tmp_path):
    """Its first checkpoint, on one task: how far the whole of it goes is a matter of time, not of another path."""
    raw = {"apply_chat_template": False, "fewshot_as_multiturn": False}  # the demo has no chat template
    design = read_design(name, {"models": ["demo"], "limit": 2, "tasks": ["edithurt_rte"], **raw})
    counts = {"n_edits": (min(100, design.n_edits[0]),)} if design.n_edits else {"n_operations": (1,)}
    outcome = engine.run_sweep(
        checking.check(replace(design, **counts), folder.SweepFolder(tmp_path)), device="cpu", progress=False
    )
    assert outcome.loads == 1 and not outcome.failed and set(outcome.statuses.values()) == {"done"}


def test_the_documentation_names_every_key():
    text = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    table = {
        word
        for line in text.split("\n")
        if line.startswith("| `")
        for word in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert table == set(KEYS)
