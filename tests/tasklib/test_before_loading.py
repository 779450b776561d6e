"""What the tasks of a run need is looked for whatever family they are of, and every problem is told."""

from __future__ import annotations

import json

import pytest

from lm_eval_edit.errors import ConfigurationError, UserError
from lm_eval_edit.tasklib import before_loading
from tests.support.suite_records import RECORDS

API = {"model": "an-api"}
TASKS = ["edithurt_sst2", "edithurt_glue_cola", "edithurt_efficacy", "hellaswag"]


def test_problems_of_every_family_are_told_together(tmp_path):
    wrong = API | {"data_dir": str(tmp_path), "items": "few", "n_edits": 0, "edit_dataset": "demo"}
    with pytest.raises(ConfigurationError) as error:
        before_loading.check_tasks(TASKS, wrong)
    told = "\n".join(error.value.problems)
    for part in ("holds no data for sst2", "holds no data for cola", "items=few: want"):
        assert part in told
    assert len(error.value.problems) == 3, "once each; the schedule is not looked at while its options are wrong"
    with pytest.raises(UserError, match="n_edits=0: an empty schedule"):
        before_loading.check_tasks(["edithurt_efficacy"], wrong | {"items": None})


def test_one_problem_is_told_as_it_is(tmp_path):
    (tmp_path / "sst2.jsonl").write_text(json.dumps(RECORDS["sst2"]) + "\n")
    before_loading.check_tasks(["edithurt_sst2"], API | {"data_dir": str(tmp_path)})
    with pytest.raises(ConfigurationError, match="1 problem in the configuration"):
        before_loading.check_tasks(["edithurt_rte"], API | {"data_dir": str(tmp_path)})


def test_broken_records_of_the_suite_and_of_the_text_are_told_before_a_model_loads(tmp_path):
    boolq = RECORDS["boolq"]
    lacking = {key: value for key, value in boolq.items() if key != "answer"}
    lines = [boolq, lacking, boolq, lacking]
    (tmp_path / "boolq.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "samsum.jsonl").write_text(json.dumps(RECORDS["samsum"] | {"summary": " "}) + "\n")
    (tmp_path / "wikitext.jsonl").write_text('{"text": "a b"}\n{"txt": "c d"}\n')
    names, run = ["edithurt_boolq_mc", "edithurt_samsum_mc", "edithurt_perplexity"], API | {"data_dir": str(tmp_path)}
    for check in (before_loading.check_tasks, before_loading.check_records):
        with pytest.raises(ConfigurationError) as error:
            check(names, run)
        told = "\n".join(error.value.problems)
        for part in (
            f"{tmp_path / 'boolq.jsonl'}:2: the field 'answer' is missing", "boolq.jsonl:4: ",
            f"samsum_mc: {tmp_path / 'samsum.jsonl'}:1 has an empty answer", "wikitext.jsonl, record 2: want a text",
        ):  # fmt: skip
            assert part in told
        assert len(error.value.problems) == 4
    before_loading.check_tasks(["edithurt_samsum"], run)  # an empty summary has words in common with none, and is one


def test_the_command_line_tells_the_problems_of_all_its_tasks_together(tmp_path):
    """The harness looks its tasks up one by one."""
    from lm_eval.config.evaluate_config import EvaluatorConfig

    import lm_eval_edit._startup.hooks as hooks

    hooks.connect()
    (tmp_path / "boolq.jsonl").write_text("{}\n")
    config = EvaluatorConfig(
        tasks=["edithurt_boolq", "edithurt_glue_sst"], metadata=API | {"data_dir": str(tmp_path), "items": "few"}
    )
    with pytest.raises(ConfigurationError) as error:
        config.process_tasks()
    told = "\n".join(error.value.problems)
    for part in ("boolq.jsonl:1: the field 'passage' is missing", "holds no data for sst", "items=few"):
        assert part in told


@pytest.mark.parametrize(("model", "of_options"), [("edited_hf", 2), ("hf", 0)])
def test_wrong_options_of_the_edited_model_are_told_with_the_problems_of_its_tasks(tmp_path, model, of_options):
    from lm_eval.config.evaluate_config import EvaluatorConfig

    import lm_eval_edit._startup.hooks as hooks

    hooks.connect()
    wrong = {"editor": "rome", "n_edit": 3, "edit_layers": "9-3", "data_dir": str(tmp_path)}
    tasks = ["edithurt_sst2", "edithurt_glue_sst"]
    with pytest.raises(ConfigurationError) as error:
        EvaluatorConfig(model=model, model_args=dict(wrong), metadata=API | wrong, tasks=tasks).process_tasks()
    told = error.value.problems
    for part in ("holds no data for sst2; looked for", "holds no data for sst; looked for"):
        assert sum(part in problem for problem in told) == 1
    assert sum("n_edit: no such option" in each or "runs backwards" in each for each in told) == of_options


GLUE_SST = ["edithurt_glue_sst"]


@pytest.mark.parametrize(
    ("model", "tasks", "told"),
    [
        ("hf", GLUE_SST, True),
        ("hf-multimodal", GLUE_SST, True),
        ("edited_hf", GLUE_SST, False),
        ("dummy", GLUE_SST, False),  # takes what it is given
        ("hf", ["hellaswag"], False),  # its `data_dir` may be something else
    ],
)
def test_what_tasks_read_is_not_an_argument_of_a_model_of_the_harness(model, tasks, told):
    """transformers would be given it, and refuse it after the model's files were read."""
    import lm_eval_edit._startup.hooks as hooks

    hooks.connect()
    found = hooks._options_of_tasks(tasks, model, {"pretrained": "m", "items": 5, "data_dir": "demo"})
    assert len(found) == told
    assert all("tasks are told by --metadata data_dir=demo,items=5" in problem for problem in found)
    assert (
        hooks._options_of_tasks(tasks, model, {"pretrained": "m"}) == hooks._options_of_tasks(tasks, model, None) == []
    )


def test_a_misplaced_option_is_told_with_the_problems_of_the_tasks():
    from lm_eval.config.evaluate_config import EvaluatorConfig

    import lm_eval_edit._startup.hooks as hooks

    hooks.connect()
    given = {"pretrained": "demo", "data_dir": "demo", "items": "few"}
    with pytest.raises(ConfigurationError) as error:
        EvaluatorConfig(model="hf", model_args=dict(given), metadata=dict(given), tasks=GLUE_SST).process_tasks()
    misplaced, wrong = error.value.problems
    assert "data_dir, items in --model_args: the model type hf has no such argument" in misplaced
    assert "items=few: want" in wrong


def test_tasks_of_others_need_nothing():
    before_loading.check_tasks(["hellaswag"], API)
    assert before_loading.records_of(["hellaswag", "edithurt_efficacy"]) == []
