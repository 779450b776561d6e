"""Requests, documents and responses in both forms that releases of the harness give them."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from lm_eval_edit.comparison import flips
from lm_eval_edit.comparison.logged_samples import _answer_hash
from lm_eval_edit.edits.states import in_state, wanted_state
from lm_eval_edit.harness import requests, samples
from lm_eval_edit.harness.requests import Origin
from lm_eval_edit.tasklib.editing import metrics as editing_metrics
from lm_eval_edit.tasklib.editing.tasks import Asked, EditingTask

pytestmark = pytest.mark.libraries


@dataclass
class Earlier:
    """An `Instance` as 0.4 has it."""

    request_type: str
    doc: dict
    arguments: tuple
    idx: int
    metadata: tuple = (None, None, None)
    resps: list = field(default_factory=list)
    filtered_resps: dict = field(default_factory=dict)
    task_name: str | None = None
    doc_id: int | None = None
    repeats: int | None = None

    def __post_init__(self):
        self.task_name, self.doc_id, self.repeats = self.metadata

    args = property(lambda self: self.arguments)


@dataclass
class Later:
    """An `Instance` as 0.5 has it."""

    request_type: str
    doc: dict = field(repr=False)
    arguments: tuple
    task_name: str
    doc_id: int = field(kw_only=True)
    idx: int = 0
    repeats: int = 1
    target: Any = None
    resps: list = field(default_factory=list)
    filtered_resps: dict = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)

    args = property(lambda self: self.arguments)


@dataclass
class EarlierAsked(Earlier):
    role: str = ""


@dataclass
class LaterAsked(Later):
    role: str = ""


@pytest.mark.parametrize("kind", [EarlierAsked, LaterAsked])
def test_a_request_is_made_in_either_form(kind):
    of = Origin("edithurt_efficacy", 7, 2)
    made = requests.make(kind, "loglikelihood", {"edit": 7}, in_state(("a", " b"), 3), 1, of, role="target")
    assert (made.request_type, made.doc, made.idx, made.role) == ("loglikelihood", {"edit": 7}, 1, "target")
    assert (made.task_name, made.doc_id, made.repeats) == of
    assert wanted_state(made) == 3


def test_the_installed_form_is_known():
    made = requests.make(Asked, "loglikelihood", {}, ("a", " b"), 0, Origin("t", 4, 1), role="target", tokens=2)
    assert isinstance(made, Instance) and (made.task_name, made.doc_id, made.repeats) == ("t", 4, 1)
    assert (made.role, made.tokens) == ("target", 2)


def test_where_a_request_comes_from_is_read_in_either_form():
    task = SimpleNamespace(config=SimpleNamespace(task="t", repeats=3))
    told = {"apply_chat_template": False, "chat_template": None}
    assert requests.origin(task, told | {"metadata": ("t", 5, 3)}) == Origin("t", 5, 3)
    assert requests.origin(task, told | {"doc_id": 5}) == Origin("t", 5, 3)


def test_documents_and_predicting_only_in_either_form():
    earlier = SimpleNamespace(task_docs=[1, 2], _metric_fn_list={"bypass": None})
    later = SimpleNamespace(eval_docs=[1, 2], _has_metric=lambda name: name == "bypass")
    assert requests.documents(earlier) == requests.documents(later) == [1, 2]
    assert requests.predicts_only(earlier) and requests.predicts_only(later)
    assert not requests.predicts_only(SimpleNamespace(_metric_fn_list={"score": None}))
    assert not requests.predicts_only(SimpleNamespace(_has_metric=lambda name: False))


ANSWERS = [("target", 1, (-0.5, True)), ("target", 2, (-1.5, False)), ("other", 1, (-3.0, False))]


@pytest.mark.parametrize("repeated", [False, True], ids=["one response", "a list of repeats"])
def test_answers_are_labelled_and_scored_alike_in_either_form(repeated, monkeypatch):
    asked = [
        SimpleNamespace(role=role, tokens=n, filtered_resps={"none": [answer] if repeated else answer})
        for role, n, answer in ANSWERS
    ]
    monkeypatch.setattr("lm_eval.api.task.ConfigurableTask.apply_filters", lambda self: None)
    EditingTask.apply_filters(SimpleNamespaceTask(asked))
    found = [request.filtered_resps["none"] for request in asked]
    results = [each for response in found for each in response] if repeated else found  # as the harness hands them on
    values = editing_metrics.edited({"fact_id": "f"}, results)
    assert (values["em"], values["prob_success"]) == (0.0, 1.0)
    assert values["token_acc"] == pytest.approx(1 / 3)


class SimpleNamespaceTask(EditingTask):
    """A task that holds its requests and nothing else."""

    def __init__(self, asked):
        self._instances = asked


LOGGED = {
    "words": ["yes"],
    "a choice of two": [["-2.0", "False"], ["-1.0", "True"]],
    "an edit": [["target", 1, ["-0.5", "True"]], ["says", 1, "Spanish"]],
}


@pytest.mark.parametrize("kind", LOGGED)
def test_logged_samples_are_read_alike_in_either_form(kind):
    earlier = LOGGED[kind]
    later = [[each] for each in earlier]
    assert samples.responses(later) == samples.responses(earlier) == earlier
    arguments = {"gen_args_0": {"arg_1": " a"}, "gen_args_1": {"arg_1": " b"}}
    said = [flips.output({"filtered_resps": each, "arguments": arguments}) for each in (earlier, later)]
    assert said[0] == said[1] == {"words": "yes", "a choice of two": " b", "an edit": "Spanish"}[kind]
    assert _answer_hash(samples.responses(later)) == _answer_hash(earlier)


def test_several_repeats_are_left_as_they_are():
    assert samples.responses([["yes", "no"]]) == [["yes", "no"]]
    assert samples.responses([]) == [] and samples.responses(None) is None
