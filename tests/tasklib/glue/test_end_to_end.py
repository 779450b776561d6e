"""From a sweep on the demo to a comparison, and the stock command in a process of its own."""

from __future__ import annotations

import json

import pytest

from lm_eval_edit.comparison.compare import Settings, compare_runs
from lm_eval_edit.comparison.results import load_run
from lm_eval_edit.errors import ConfigurationError
from lm_eval_edit.tasklib.glue.catalogue import GROUP, GROUPED
from tests.support import console_scripts
from tests.support.small_sweeps import sweep

SHORT = ["edithurt_glue_sentiment", "edithurt_glue_rte"]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Unedited, and after three edits by ROME that hurt."""
    root = tmp_path_factory.mktemp("glue") / "out"
    args = {"v_num_grad_steps": 3, "v_lr": 20.0, "clamp_norm_factor": 40.0, "items": 12}
    outcome = sweep(root, tasks=SHORT, n_edits=[0, 3], limit=None, model_args=args)
    assert not outcome.failed
    return sorted(file.parent for file in root.rglob("results_*.json"))


def test_a_sweep_is_given_its_items(cells):
    assert len(cells) == 2
    for cell in cells:
        run = load_run(cell)
        assert {samples.task: len(samples.doc_id) for samples in run.samples.values()} == dict.fromkeys(SHORT, 12)
        assert run.results["configs"][SHORT[0]]["metadata"]["provenance"]["items"] == 12


def test_compare_recomputes_every_figure(cells):
    """Nothing is left out but counts; differences are those of the results, and a detectable drop is told."""
    base, edited = sorted(map(load_run, cells), key=lambda run: run.edit.get("n_edits") or 0)
    comparison = compare_runs(base, edited, Settings())
    rows = {(row.task, row.metric): row for row in comparison.rows}
    for task in SHORT:
        for metric in ("score", "script", "f1_new", "mcc", "valid"):
            row = rows[task, metric]
            figures = [run.results["results"][task][f"{metric},none"] for run in (base, edited)]
            assert [row.base, row.edited] == pytest.approx(figures, abs=1e-9)
            assert row.difference.value == pytest.approx(figures[1] - figures[0], abs=1e-9)
            assert row.difference.low <= row.difference.value <= row.difference.high
            assert row.detectable > 0
    # What was generated may have lost its form; a likelihood has none.
    assert rows[SHORT[0], "score"].flips.lost_format is not None and rows[SHORT[0], "f1_new"].flips.lost_format is None
    left_out = {name for samples in base.samples.values() for name in samples.left_out}
    assert left_out == {"correct", "incorrect", "invalid", "shortened"}


def test_an_answer_changes_with_its_words_not_with_its_likelihoods(cells):
    base = load_run(cells[0])
    (samples,) = (samples for samples in base.samples.values() if samples.task == SHORT[0])
    lines = [json.loads(line) for line in samples.file.read_text().splitlines()]
    texts = {line["filtered_resps"][0] for line in lines}
    assert len(set(samples.answers.tolist())) == len(texts) < len(lines)


def test_a_sweep_is_told_of_its_mistakes_before_anything_loads(tmp_path):
    with pytest.raises(ConfigurationError) as error:
        sweep(tmp_path, tasks=SHORT, model_args={"items": "none at all"})
    (problem,) = error.value.problems  # once, and not once more for each row
    assert problem.startswith("items=none at all: want a whole number")


@pytest.mark.slow
def test_the_stock_command_and_compare(tmp_path):
    for name, editor in (("base", "none"), ("edited", "rome,n_edits=3")):
        done = console_scripts.lm_eval(
            "--model", "edited_hf", "--model_args", f"editor={editor},items=20", "--tasks", f"{GROUP},{SHORT[0]}",
            "--output_path", name, "--log_samples", "--batch_size", 16, cwd=tmp_path,
        )  # fmt: skip
        assert f"|{GROUP} " in done.stdout and "demo data: not a benchmark result" in done.stderr
    results = console_scripts.results_of(tmp_path / "edited")
    assert {f"edithurt_glue_{task}" for task in GROUPED} < set(results["results"])
    assert results["config"]["edit"]["n_edits"] == 3
    done = console_scripts.lm_eval("compare", "base", "edited", cwd=tmp_path, program="lm-eval-edit")
    assert GROUP in done.stdout and "detectable" in done.stdout
    flat = " ".join(done.stdout.split())
    assert "whether higher is better is not said of edithurt_glue_rte f1_new" in flat + " ".join(done.stderr.split())


@pytest.mark.slow
def test_mistakes_are_told_without_loading_a_model(tmp_path):
    (tmp_path / "mmlu.jsonl").write_text('{"question": "q", "choices": ["a"], "answer": 0}\n')
    done = console_scripts.lm_eval(
        "--model", "hf", "--model_args", "pretrained=nobody/nothing", "--metadata", "data_dir=.,items=-2",
        "--tasks", GROUP, cwd=tmp_path, ok=False,
    )  # fmt: skip
    for part in ("holds no data for nli", "mmlu.jsonl:1: the field 'choices' should hold 4", "want a whole number"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr and "nobody/nothing" not in done.stderr
