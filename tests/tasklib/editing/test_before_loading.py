"""What the edit-quality tasks lack is told all at once, by the command line too, which looks up one task at a time."""

from __future__ import annotations

import importlib.util

import pytest
from lm_eval.config.evaluate_config import EvaluatorConfig

from lm_eval_edit._startup.hooks import connect
from lm_eval_edit.errors import ConfigurationError
from lm_eval_edit.tasklib.editing import documents, texts

RUN = {"pretrained": "demo", "editor": "rome", "n_edits": 2}
WRONG = {"snippets": "nowhere", "word_tokenizer": "blanks", "sampling_seed": -1, "text_tokens": 1}
GENERATION = "edithurt_counterfact_generation"


def problems(tasks: list[str], **metadata) -> list[str]:
    with pytest.raises(ConfigurationError) as error:
        documents.check_tasks(tasks, RUN | metadata)
    return list(error.value.problems)


def test_every_wrong_input_of_generation_is_told():
    told = problems([GENERATION], **WRONG)
    assert [problem.split("=")[0] for problem in told] == [
        "snippets",
        "word_tokenizer",
        "sampling_seed",
        "text_tokens",
    ]


def test_a_missing_extra_hides_no_wrong_input(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(texts.importlib.util, "find_spec", lambda name: None if name == "nltk" else find(name))
    told = problems([GENERATION], **WRONG)
    assert "needs nltk, not installed here: pip install 'lm-eval-edit[generation]'" in told[0] and len(told) == 5
    assert len(problems([GENERATION])) == 1


def test_the_command_line_is_told_what_every_task_lacks():
    connect()
    config = EvaluatorConfig(
        model="edited_hf", tasks=[f"{GENERATION},edithurt_wild_chat", "edithurt_reversed"], model_args=RUN
    )
    config.metadata = RUN | WRONG
    with pytest.raises(ConfigurationError) as error:
        config.process_tasks(config.metadata)
    assert len(error.value.problems) == 6
    config.tasks, config.metadata = ["edithurt_negation"], RUN
    config.process_tasks(RUN)
    assert config.tasks == ["edithurt_negation"]


def test_advice_names_no_group_that_the_task_is_not_of():
    (told,) = problems(["edithurt_reversed"])
    assert told.endswith("has a question of the inverse relation (portability of kind reversed); leave the task out, "
                         "or give another edit_dataset")  # fmt: skip
