"""Which facts the edit-quality tasks ask about, what each document holds, and what is said where there is none."""

from __future__ import annotations

import json
import logging

import pytest

from lm_eval_edit import ConfigurationError, EditSchedule, UserError, demo
from lm_eval_edit.facts.fact import Fact, Probe
from lm_eval_edit.plan import make_plan
from lm_eval_edit.tasklib.editing import documents

FACT = Fact(
    "Nils",
    "{} lives in",
    "Oslo",
    "Rome",
    id="7",
    paraphrases=("The home of {} is", "Where is Nils?"),
    locality=(Probe("Greta lives in", "Rome"), Probe("The capital of Spain is", " Madrid"), Probe("x", "Oslo")),
)


def rows(docs, *names):
    return [tuple(doc[name] for name in names) for doc in docs]


def test_the_documents_of_a_fact():
    fields = ("fact_id", "edit", "prompt", "target", "other")
    assert rows(documents.efficacy(FACT, 3), *fields) == [("7", 3, "Nils lives in", " Oslo", " Rome")]
    assert rows(documents.generalization(FACT, 3), *fields) == [
        ("7", 3, "The home of Nils is", " Oslo", " Rome"),
        ("7", 3, "Where is Nils?", " Oslo", " Rome"),
    ]
    assert rows(documents.locality(FACT, 3), *fields) == [
        ("7", 3, "Greta lives in", " Rome", " Oslo"),
        ("7", 3, "The capital of Spain is", " Madrid", " Oslo"),
        ("7", 3, "x", " Oslo", None),  # an answer cannot be likelier than itself
    ]
    (doc,) = documents.counterfact(FACT, 3)
    assert doc["neighbourhood"] == ["Greta lives in"] and len(doc["paraphrases"]) == 2


def test_a_fact_without_a_true_object():
    fact = Fact("Nils", "{} lives in", "Oslo", id="7")
    assert rows(documents.efficacy(fact, 0), "other") == [(None,)]
    assert documents.generalization(fact, 0) == documents.locality(fact, 0) == documents.counterfact(fact, 0) == []


@pytest.mark.parametrize("editor", ["rome", "kn", "memit"])
@pytest.mark.parametrize("model", ["demo", str(demo.CHECKPOINT)])
def test_they_are_the_facts_that_are_edited(editor, model):
    options = {"editor": editor, "n_edits": 5, "edit_seed": 3, "edit_offset": 2}
    planned = [fact for operation in make_plan(model, options, {}).operations for fact in operation]
    docs, known = documents.load("efficacy", {"pretrained": model, "version": 1.0, **options})
    assert [doc["fact_id"] for doc in docs] == [fact.id for fact in planned]
    assert known["documents"] == known["facts"] == 5
    before, _ = documents.load("efficacy", {"pretrained": model, **options, "editor": "none"})
    assert before == docs
    other, _ = documents.load("efficacy", {"pretrained": model, **options, "edit_seed": 4})
    assert other != docs


def test_an_editor_that_cannot_edit_a_fact_is_not_asked_about_it(tmp_path):
    """The editor's own filter decides, as it does in the plan."""
    records = [{"id": str(i), "subject": "A", "prompt": "{} is", "target_new": "b"} for i in range(4)]
    records[2]["target_true"] = "c"
    (tmp_path / "facts.json").write_text(json.dumps(records))
    options = {"edit_dataset": str(tmp_path / "facts.json"), "n_edits": 1, "edit_seed": None}
    for editor, wanted in (("rome", "0"), ("kn", "2")):
        docs, _ = documents.load("efficacy", {**options, "editor": editor})
        assert [doc["fact_id"] for doc in docs] == [wanted]
        assert make_plan("demo", {**options, "editor": editor}, {}).operations[0][0].id == wanted


def test_schedules_of_different_editors_are_one_order(tmp_path):
    """KN cannot edit what has no known answer; it passes over those facts in the order that all editors have."""
    records = [{"id": str(i), "subject": "A", "prompt": "{} is", "target_new": "b"} for i in range(20)]
    known = [0, 1, 4, 5, 7, 11, 12, 16, 19]
    for i in known:
        records[i]["target_true"] = "c"
    (tmp_path / "facts.json").write_text(json.dumps(records))

    def asked(editor, n, **more):
        options = {"edit_dataset": str(tmp_path / "facts.json"), "n_edits": n, "editor": editor, "edit_seed": 3, **more}
        ids = [doc["fact_id"] for doc in documents.load("efficacy", options)[0]]
        if editor != "none":
            planned = make_plan("demo", options, {}).operations
            assert [fact.id for operation in planned for fact in operation] == ids
        return ids

    whole = asked("rome", 20)
    assert whole == asked("none", 20) and sorted(whole, key=int) != whole
    passed = [name for name in whole if int(name) in known]
    assert asked("kn", 9) == passed and asked("kn", 4) == passed[:4]
    assert asked("kn", 3, edit_offset=2) == passed[2:5]
    assert asked("none", 4, edit_facts_for="kn") == passed[:4] != asked("none", 4)
    with pytest.raises(UserError, match=r"only 9 usable facts are there \(of 20\): .* In all: 11 because"):
        asked("kn", 10)


def test_the_order_of_facts_stays():
    """The permutation over the facts is Python's of the seed: what is on disk of earlier runs fits."""
    facts = [Fact("s", "{}", "t", id=str(i)) for i in range(1037)]
    assert [fact.id for fact in EditSchedule(4, seed=0).order(facts)] == ["724", "25", "4", "595"]


def facts_file(tmp_path, **fields):
    records = [{"subject": "Abo", "prompt": "{} is", "target_new": "b", **fields}] * 2
    file = tmp_path / "facts.json"
    file.write_text(json.dumps([record | {"id": str(i)} for i, record in enumerate(records)]))
    return {"edit_dataset": str(file), "n_edits": 2, "editor": "none"}


def test_tasks_without_documents_are_named_before_anything_loads(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        documents.check_tasks(["edithurt_editing", "edithurt_counterfact"], facts_file(tmp_path))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "edithurt_generalization",
        "edithurt_locality",
        "edithurt_counterfact",
    ]
    assert "none of the 2 facts of the schedule" in caught.value.problems[0]
    assert "has a paraphrase; ask for edithurt_efficacy instead" in caught.value.problems[0]
    documents.check_tasks(["edithurt_efficacy", "hellaswag"], facts_file(tmp_path))
    documents.check_tasks(["edithurt_editing"], {"n_edits": 2})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_edits": 0}, "n_edits=0: an empty schedule has no facts to ask about"),
        ({"n_edits": 5000}, "only 1020 usable facts are there"),
        ({"edit_when": "after_eech"}, "want after_all or after_each. Did you mean 'after_each'?"),
        ({"edit_when": "sometimes"}, "edit_when=sometimes: want after_all or after_each"),
        ({"edit_dataset": "/no/such.json"}, "no such file"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        documents.check_tasks(["edithurt_efficacy"], options)


def test_what_is_left_out_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        documents.dataset("efficacy", **facts_file(tmp_path, target_true="B"))
    assert not caplog.records
    provenance = {}
    with caplog.at_level(logging.WARNING):
        documents.dataset("efficacy", provenance, **facts_file(tmp_path))
    assert "prob_success leaves out 2 of 2 documents" in caplog.text
    assert provenance["without_other"] == 2 and provenance["edit_when"] == "after_all"


def test_counterfact_and_zsre_records(data):
    cf, _ = documents.load("locality", {"edit_dataset": str(data / "counterfact.jsonl"), "n_edits": 3})
    assert len(cf) == 30 and all(doc["other"] not in (None, doc["target"]) for doc in cf)
    full, known = documents.load("counterfact", {"edit_dataset": str(data / "counterfact.jsonl"), "n_edits": 3})
    assert all(len(doc["neighbourhood"]) == 10 for doc in full) and known["facts_without"] == 0
    zsre, _ = documents.load("locality", {"edit_dataset": str(data / "zsre.jsonl"), "n_edits": 3})
    assert len(zsre) == 3 and all(doc["prompt"].startswith("nq question:") for doc in zsre)
