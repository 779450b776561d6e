"""Results that the harness wrote by itself: `--model hf`, local YAML tasks, nothing of ours in the files."""

from __future__ import annotations

import json

import lm_eval
import pytest
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

from lm_eval_edit import cli
from lm_eval_edit.comparison.compare import Settings, compare_runs
from lm_eval_edit.comparison.pairing import PairingError
from lm_eval_edit.comparison.results import load_run
from tests.support.tiny import (
    SENTENCES,
    save_tiny,
    tiny_model,
)

pytestmark = pytest.mark.libraries

TASK = """
task: tiny_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
fewshot_split: test
output_type: {output_type}
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
num_fewshot: 1
{extra}
"""
KINDS = {
    "choice": (
        "multiple_choice",
        'doc_to_choice: ["German", "Oslo"]\nmetric_list: [{metric: acc}, {metric: acc_norm}]',
    ),
    "text": (
        "generate_until",
        "repeats: 2\ngeneration_kwargs: {until: [], max_gen_toks: 3}\nmetric_list: [{metric: exact_match}]\n"
        "filter_list:\n  - {name: whole, filter: [{function: take_first}]}\n"
        "  - {name: upper, filter: [{function: uppercase}, {function: take_first}]}",
    ),
    "likely": ("loglikelihood", "metric_list: [{metric: perplexity}, {metric: acc}]"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two models and three tasks, evaluated by the harness alone."""
    folder = tmp_path_factory.mktemp("harness")
    words = SENTENCES[0].split()[:12]
    docs = [{"prompt": " ".join(words[: 2 + i % 9]) + f" {i}", "answer": "German"} for i in range(20)]
    (folder / "docs.jsonl").write_text("\n".join(json.dumps(doc) for doc in docs))
    tasks = folder / "tasks"
    tasks.mkdir()
    for kind, (output_type, extra) in KINDS.items():
        text = TASK.format(kind=kind, output_type=output_type, extra=extra, file=folder / "docs.jsonl")
        (tasks / f"{kind}.yaml").write_text(text)
    for seed in (0, 1):
        save_tiny(folder / f"model{seed}", tiny_model(seed=seed))
    return folder


def evaluate(world, folder, seed, **options):
    tracker = EvaluationTracker(output_path=str(folder))
    results = lm_eval.simple_evaluate(
        model="hf", model_args={"pretrained": str(world / f"model{seed}")}, device="cpu", bootstrap_iters=0,
        tasks=[f"tiny_{kind}" for kind in KINDS], evaluation_tracker=tracker,
        task_manager=TaskManager(include_path=str(world / "tasks"), include_defaults=False), **options,
    )  # fmt: skip
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    return load_run(folder), results


@pytest.fixture(scope="module")
def base(world):
    """The first model's run, one document at a time."""
    return evaluate(world, world / "base", 0)


def test_stock_results_compare(world, base, capsys):
    base, figures = base
    other, _ = evaluate(world, world / "other", 1)
    found = {(row.task, row.filter, row.metric): row for row in compare_runs(base, other).rows}
    assert list(found) == [
        ("tiny_choice", "none", "acc"), ("tiny_choice", "none", "acc_norm"), ("tiny_text", "whole", "exact_match"),
        ("tiny_text", "upper", "exact_match"), ("tiny_likely", "none", "perplexity"), ("tiny_likely", "none", "acc"),
    ]  # fmt: skip
    for (task, filter_name, metric), row in found.items():
        assert row.base == pytest.approx(figures["results"][task][f"{metric},{filter_name}"])
    assert not found["tiny_likely", "none", "perplexity"].higher_is_better
    assert not base.edit and all(not samples.left_out for samples in base.samples.values())
    assert cli.main(["compare", str(world / "base"), str(world / "other")]) == 0
    assert "tiny_text (upper)" in capsys.readouterr().out


def test_another_batch_size_is_identical(world, base, tmp_path):
    other, _ = evaluate(world, tmp_path, 0, batch_size=7)
    for row in compare_runs(base[0], other, Settings(delta=0.02)).rows:
        assert row.verdict == "no regression" and (row.identical or row.metric == "perplexity"), row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 5}, r"20 documents against 5, 5 in common \(limit: None against 5\)"),
        ({"num_fewshot": 2}, "tiny_choice: few-shot examples: 1 against 2"),
        ({"fewshot_random_seed": 7}, r"the prompts of \d+ of 20 documents differ .*few-shot seed \(1234 against 7\)"),
        ({"gen_kwargs": "max_gen_toks=2"}, "tiny_text .*: generation settings: .*3.* against .*2"),
        (
            {"system_instruction": "Be brief ."},
            "the prompts of 20 of 20 .*differs between the runs: system instruction",
        ),
    ],
)
def test_other_settings_do_not_pair(world, base, tmp_path, options, message):
    other, _ = evaluate(world, tmp_path, 0, **options)
    with pytest.raises(PairingError, match=message):
        compare_runs(base[0], other)
