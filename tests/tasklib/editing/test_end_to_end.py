"""The edit-quality tasks by the real console scripts: before and after ROME on the demo world, and compared."""

from __future__ import annotations

import json

import pytest

from tests.support.console_scripts import lm_eval, results_of, samples_of

pytestmark = pytest.mark.slow
NAMES = ("efficacy", "generalization", "locality")


def figure(results, task, metric):
    return results["results"][f"edithurt_{task}"][f"{metric},none"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The unedited demo model, after ten ROME edits, and right after each of them."""
    folder = tmp_path_factory.mktemp("runs")
    for name, program, arguments in (
        ("before", "lm_eval", "editor=none"),
        ("after", "lm_eval", "editor=rome"),
        ("each", "lm-eval-edit", "editor=rome,edit_when=after_each"),
    ):
        lm_eval(
            *(["run"] if program == "lm-eval-edit" else []), "--model", "edited_hf", "--model_args",
            f"{arguments},n_edits=10", "--tasks", "edithurt_editing", "--output_path", name, "--log_samples",
            cwd=folder, program=program,
        )  # fmt: skip
    return folder


def test_efficacy_from_near_zero_to_near_one(runs):
    before, after, each = (results_of(runs / name) for name in ("before", "after", "each"))
    assert figure(before, "efficacy", "em") <= 0.05
    assert figure(after, "efficacy", "em") >= 0.95 and figure(each, "efficacy", "em") >= 0.95
    assert figure(before, "locality", "correct") >= 0.9 and figure(before, "locality", "unchanged") == 1
    assert figure(after, "locality", "unchanged") < figure(each, "locality", "unchanged") < 1
    assert figure(after, "generalization", "em") > 0.8 > figure(before, "generalization", "em")


def test_every_figure_has_a_standard_error_and_the_results_say_what_was_asked(runs):
    for name in ("before", "after", "each"):
        results = results_of(runs / name)
        for task in NAMES:
            values = results["results"][f"edithurt_{task}"]
            metrics = [key.removesuffix(",none") for key in values if key.endswith(",none") and "_stderr" not in key]
            assert len(metrics) >= 4
            assert all(isinstance(values[f"{metric}_stderr,none"], float) for metric in metrics)
            provenance = results["configs"][f"edithurt_{task}"]["metadata"]["provenance"]
            assert provenance["source"] == "demo" and provenance["facts"] == 10
            assert provenance["edit_when"] == ("after_each" if name == "each" else "after_all")
    assert figure(results_of(runs / "after"), "generalization", "em_stderr") > 0


def test_the_documents_are_the_edited_facts(runs):
    edited = results_of(runs / "after")["config"]["edit"]["fact_ids"]
    for name in ("before", "after", "each"):
        assert [sample["doc"]["fact_id"] for sample in samples_of(runs / name, "edithurt_efficacy")] == edited


def test_before_and_after_can_be_compared(runs):
    arguments = ("compare", "before", "after", "--format", "json", "--flips", "flips.jsonl")
    done = lm_eval(*arguments, cwd=runs, program="lm-eval-edit")
    (compared,) = json.loads(done.stdout)["comparisons"]
    rows = {(row["task"], row["metric"]): row for row in compared["rows"]}
    assert rows["edithurt_efficacy", "em"]["verdict"] == "improved"
    assert rows["edithurt_locality", "unchanged"]["verdict"] == "regressed"
    assert rows["edithurt_locality", "unchanged"]["cluster_field"] == "fact_id"
    assert rows["edithurt_locality", "unchanged"]["clusters"] == 10
    assert "edithurt_locality" in (runs / "flips.jsonl").read_text()


def test_a_schedule_without_facts_to_ask_is_said_before_the_model_loads(tmp_path):
    done = lm_eval(
        "run", "--model", "edited_hf", "--model_args", "editor=none,n_edits=0", "--tasks", "edithurt_editing",
        cwd=tmp_path, program="lm-eval-edit", ok=False,
    )  # fmt: skip
    assert "n_edits=0: an empty schedule" in done.stderr and "Traceback" not in done.stderr
    assert "Loading weights" not in done.stderr
