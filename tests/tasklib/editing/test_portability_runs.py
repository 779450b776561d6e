"""`edithurt_portability` by the stock command, compared before and after, and in a sweep."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lm_eval_edit import load_facts
from lm_eval_edit.cli import main
from lm_eval_edit.sweep.reading import load_sweep
from tests.support.console_scripts import lm_eval, results_of, samples_of
from tests.support.small_sweeps import sweep

pytestmark = pytest.mark.slow
TASK = "edithurt_portability"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The unedited demo model, and after eight ROME edits."""
    folder = tmp_path_factory.mktemp("runs")
    for name, editor in (("before", "none"), ("after", "rome")):
        lm_eval(
            "--model", "edited_hf", "--model_args", f"editor={editor},n_edits=8", "--tasks", TASK,
            "--output_path", name, "--log_samples", cwd=folder,
        )  # fmt: skip
    return folder


def test_what_follows_from_an_edit_is_said_after_it(runs):
    before, after = (results_of(runs / name)["results"][TASK] for name in ("before", "after"))
    assert before["score,none"] == 0 and after["score,none"] > 0.5
    assert after["alias,none"] > 0.5 and isinstance(after["alias_stderr,none"], float)
    config = results_of(runs / "after")["configs"][TASK]["metadata"]
    assert config["measures"] == "edit_quality" and config["provenance"]["by_kind"]["alias"] == 8
    edited = results_of(runs / "after")["config"]["edit"]["fact_ids"]
    assert list(dict.fromkeys(sample["doc"]["fact_id"] for sample in samples_of(runs / "after", TASK))) == edited


def test_before_and_after_are_compared_kind_by_kind(runs):
    arguments = ("compare", "before", "after", "--format", "json", "--flips", "flips.jsonl")
    (compared,) = json.loads(lm_eval(*arguments, cwd=runs, program="lm-eval-edit").stdout)["comparisons"]
    rows = {row["metric"]: row for row in compared["rows"] if row["task"] == TASK}
    assert rows["score"]["verdict"] == "improved" and rows["score"]["measures"] == "edit_quality"
    assert rows["alias"]["edited"] > rows["alias"]["base"] == 0
    assert rows["score"]["clusters"] == 8
    assert TASK in (runs / "flips.jsonl").read_text()


def test_a_checkpoint_before_the_first_question_fails_in_this_task_alone(tmp_path):
    first, second = load_facts("demo")[:2]
    records = [replace(first, portability=()).record(), second.record()]
    (tmp_path / "facts.json").write_text(json.dumps(records))
    changes = {"datasets": str(tmp_path / "facts.json"), "n_edits": [1, 2], "edit_seeds": "none", "limit": None}
    sweep(tmp_path / "out", tasks=["edithurt_efficacy", TASK], **changes)
    (row,) = load_sweep(tmp_path / "out").rows
    one, two = row.cells
    assert one.status == "failed" and one.reason.startswith(f"{TASK}: UserError") and "efficacy:" not in one.reason
    assert one.value("edithurt_efficacy") is not None and one.value(TASK) is None
    assert two.status == "done" and two.value(TASK) is not None


def test_a_sweep_asks_before_and_after(tmp_path):
    sweep(tmp_path, tasks=[TASK], n_edits=[0, 2, 3], model_args={}, limit=None)
    (row,) = load_sweep(tmp_path).rows
    before, *after = (cell.value(TASK, "score").value for cell in (row.before, *row.cells))
    assert before == 0 and after[0] > 0
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "report.html")]) == 0
    assert TASK in (tmp_path / "report.html").read_text()
