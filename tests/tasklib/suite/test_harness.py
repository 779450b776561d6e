"""The tasks inside the harness: structure of the YAML, a whole run, and what the results hold."""

from __future__ import annotations

import json
import math

import pytest
import yaml

from lm_eval_edit.tasklib.suite import prompts
from lm_eval_edit.tasklib.suite.catalogue import GROUP, TASKS
from tests.conftest import ROOT
from tests.support.suite_records import RECORDS, sample_of

pytestmark = pytest.mark.libraries

TASKS_DIR = ROOT / "tasks"
NAMES = [f"edithurt_{task}" for task in TASKS]
METRICS = ("score", "script", "valid")
VERSIONS = dict.fromkeys(("rte", "nq", "boolq", "samsum", "conll2003"), 1.1)  # whose `script` or prompts changed


def manager(metadata):
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(TASKS_DIR), include_defaults=False, metadata=metadata)


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    """The group, with a dozen copies of a made-up record for each task."""
    folder = tmp_path_factory.mktemp("data")
    for task, record in RECORDS.items():
        (folder / f"{TASKS[task].stem}.jsonl").write_text((json.dumps(record) + "\n") * 12)
    return manager({"model": "an-api", "data_dir": str(folder), "editor": "rome", "n_edits": 20}).load([GROUP])


@pytest.fixture(params=NAMES)
def task(request, loaded):
    return loaded["tasks"][request.param]


def test_the_group_has_the_eight_tasks(loaded):
    assert list(loaded["tasks"]) == NAMES
    group = loaded["groups"][GROUP]
    assert [(m.metric, m.weight_by_size) for m in group.aggregate_metric_list] == [(name, False) for name in METRICS]


def test_the_folder_holds_yaml_and_notes_only():
    assert {path.suffix for path in (TASKS_DIR / GROUP).iterdir()} <= {".yaml", ".md", ""}


def test_configuration(task):
    name = task.config.task.removeprefix("edithurt_")
    assert VERSIONS.get(name, 1.0) == task.VERSION
    assert task.config.num_fewshot == 0 and task.OUTPUT_TYPE == "generate_until"
    assert task.config.generation_kwargs == {"until": [], "do_sample": False, "max_gen_toks": TASKS[name].new_tokens}
    assert set(METRICS) < set(task.aggregation()) == set(task.higher_is_better())
    assert not task.has_training_docs() and not task.has_validation_docs() and task.has_test_docs()
    assert task.config.metadata["provenance"]["source"] == "folder:jsonl"


def test_documents_and_requests(task):
    """What upstream checks of every task: ten documents, text without a trailing space, targets, requests."""
    docs = list(task.test_docs().select(range(10)))
    texts = [task.doc_to_text(doc) for doc in docs]
    assert all(isinstance(text, str) and text and text[-1] not in " \n" for text in texts)
    assert all(isinstance(task.doc_to_target(doc), str | list) for doc in docs)
    for doc, text in zip(docs, texts, strict=True):
        assert task.fewshot_context(doc, 0) == text
        request = task.construct_requests(doc, text, metadata=(task.config.task, 0, 1))
        assert request.args == (text, task.config.generation_kwargs)


@pytest.mark.parametrize("output", ["", " ", "\n", " yes", " 1,003", " A", "😀", " Berg, Berg and spoke\n" * 5])
def test_any_output_can_be_scored(task, output):
    docs = list(task.test_docs())
    rows = [task.process_results(doc, [output]) for doc in docs]
    for name in METRICS:
        value = task.aggregation()[name]([row[name] for row in rows])
        assert isinstance(value, float) and 0 <= value <= 1
    json.dumps(rows)


def test_the_right_answer_scores_one(task):
    """The target itself as the output: what a perfect model says."""
    docs = list(task.test_docs())
    said = [task.doc_to_target(doc) for doc in docs]
    outputs = [f" {text[0] if isinstance(text, list) else text}" for text in said]
    rows = [task.process_results(doc, [output]) for doc, output in zip(docs, outputs, strict=True)]
    assert task.aggregation()["score"]([row["score"] for row in rows]) == 1.0


def test_names_of_functions_exist():
    """`!function` is resolved only when a task is built; a typo would show as "Tasks not found"."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    for path in (TASKS_DIR / GROUP).glob("*.yaml"):
        assert isinstance(yaml.load(path.read_text(), Loader), dict)


@pytest.fixture(scope="session")
def results(reference, data, tmp_path_factory):
    from lm_eval import simple_evaluate

    folder = sample_of(data, tmp_path_factory.mktemp("sample"), 10)
    arguments = {"pretrained": str(reference / "models/gpt2-tiny")}
    return simple_evaluate(
        model="hf",
        model_args=arguments,
        tasks=[GROUP],
        task_manager=manager(arguments | {"data_dir": str(folder)}),
        limit=8,  # the four questions about each of two sentences: one alone has no standard error
        batch_size=4,
        device="cpu",
        bootstrap_iters=10,
    )


def test_every_metric_has_a_standard_error(results):
    for name in NAMES:
        for metric in METRICS:
            value, error = (results["results"][name][f"{metric}{suffix},none"] for suffix in ("", "_stderr"))
            assert 0 <= value <= 1
            assert isinstance(error, float) and math.isfinite(error)


def test_the_group_is_the_mean_of_the_eight(results):
    group = results["groups"][GROUP]
    for metric in METRICS:
        values = [results["results"][name][f"{metric},none"] for name in NAMES]
        errors = [results["results"][name][f"{metric}_stderr,none"] for name in NAMES]
        assert group[f"{metric},none"] == pytest.approx(sum(values) / 8, abs=1e-15)
        assert group[f"{metric}_stderr,none"] == pytest.approx(math.hypot(*errors) / 8, abs=1e-15)


def test_shortened_documents_are_counted(results):
    for name in NAMES:
        marked = [sample["doc"]["shortened"] for sample in results["samples"][name]]
        assert results["results"][name]["shortened,none"] == sum(marked)
    assert sum(results["results"][name]["shortened,none"] for name in NAMES) > 0


def test_the_source_is_in_the_results(results):
    for name in NAMES:
        provenance = results["configs"][name]["metadata"]["provenance"]
        assert provenance["source"] == "folder:jsonl" and provenance["documents"] in (10, 40)
        assert {sample["doc"]["source"] for sample in results["samples"][name]} == {"folder:jsonl"}
        json.dumps(provenance)
    assert results["configs"]["edithurt_nq"]["metadata"]["provenance"]["with_passage"] is True


def test_the_logged_prompt_is_the_documents(results):
    for task in TASKS:
        for sample in results["samples"][f"edithurt_{task}"]:
            (request,) = sample["arguments"]
            assert request[0] == getattr(prompts, task)(sample["doc"])
            assert request[1]["until"] == []


def test_the_table_has_no_missing_error(results):
    from lm_eval.utils import make_table

    rows = [row for row in make_table(results).splitlines() if "N/A" in row]
    assert all("shortened" in row or "ended" in row for row in rows)
    assert "N/A" not in make_table(results, "groups")
