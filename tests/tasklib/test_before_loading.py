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


def test_tasks_of_others_need_nothing():
    before_loading.check_tasks(["hellaswag"], API)
    assert before_loading.records_of(["hellaswag", "edithurt_efficacy"]) == []
