"""Prompts to the byte and the published items. The literals are those of the protocol, not of the code."""

from __future__ import annotations

import json

import datasets
import pytest

from lm_eval_edit.errors import ConfigurationError, UserError
from lm_eval_edit.tasklib import before_loading
from lm_eval_edit.tasklib.glue import documents, prompts, sources
from lm_eval_edit.tasklib.glue.catalogue import GROUP, GROUPED, TASKS
from tests.support.glue_records import FILES, record, write_all

API = {"model": "an-api"}

#: Task -> (record, prompt, right answer, label that the published script compares with).
CASES = {
    "nli": (
        {"sentence1": "A cat sat.", "sentence2": "It sat.", "label": 0},
        "A cat sat. entails the It sat. True or False? Answer:", "True", 1,
    ),
    "sst": (
        {"sentence": "a charming journey . ", "label": 1, "idx": 0},
        "Review :a charming journey . \nSentiment :", "positive", 1,
    ),
    "cola": (
        {"sentence": "Bill sleeps.", "label": 0},
        "Is this sentence linguistically acceptable?\nSentence: Bill sleeps.\nAnswer: ", "No", 0,
    ),
    "rte": (
        {"sentence1": "A cat sat.", "sentence2": "It sat.", "label": 0},
        "A cat sat.\nquestion: It sat. True or False?\nanswer:", "True", 0,
    ),
    "mmlu": (
        {"question": "Q?", "subject": "s", "choices": ["w", "x", "y", "z"], "answer": 2},
        "Question: Q?\n(A) w\n(B) x\n(C) y\n(D) z\nAnswer:", "C", 2,
    ),
    "mrpc": (
        {"sentence1": "One .", "sentence2": "Two .", "label": 1, "idx": 9},
        "Are the sentences paraphrases of each other.\nSentence 1: One .\nSentence 2: Two .\nAnswer:", "Yes", 1,
    ),
    "dialogue": (
        {"article": "m : hi .", "options": ["a .", "b .", "c .", "d ."], "answers": "D", "id": "dev_1"},
        "Q: Given the following: m : hi .\nWhich choice is correct?\n(A)a .\n(B)b .\n(C)c .\n(D)d .\nAnswer:", "D", 3,
    ),
    "sentiment": (
        {"sentence": "dull . ", "label": 0},
        "For each snippet of text,label the sentiment of the text as positive or negative.The answer should be exact "
        "'positive' or 'negative'. text: dull .  answer:", "negative", 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_prompts(task):
    made, prompt, answer, label = CASES[task]
    (doc,) = documents.build(task, [("here", made)])
    assert getattr(prompts, task)(doc) == prompt
    assert prompts.target(doc) == answer and doc["label"] == label


def test_an_answer_of_mmlu_may_be_a_letter():
    made = CASES["mmlu"][0] | {"answer": "C"}
    assert documents.build("mmlu", [("here", made)])[0]["gold"] == 2


@pytest.fixture
def folder(tmp_path):
    return write_all(tmp_path)


@pytest.mark.parametrize(
    ("items", "expected"),
    [(None, (10, 110)), ("none", (10, 110)), ("all", (0, 120)), ("ALL", (0, 120)), (50, (10, 60)), ("7", (10, 17)),
     (3.0, (10, 13)), (100, (10, 110)), (500, (10, 120))],
)  # fmt: skip
def test_items(items, expected, folder, caplog):
    docs, known = sources.load("cola", {**API, "data_dir": str(folder), "items": items})
    assert [doc["item"] for doc in docs] == list(range(*expected))
    assert ("there are 110 items, not 500" in caplog.text) == (items == 500)
    assert known["items"] == (
        "published" if items in (None, "none") else "all" if items in ("all", "ALL") else int(items)
    )


@pytest.mark.parametrize("items", [0, -1, 2.5, "many", True, "1e3"])
def test_items_that_are_no_number(items, folder):
    with pytest.raises(UserError, match=r"items=.*want a whole number of at least 1, all, or none"):
        sources.load("cola", {**API, "data_dir": str(folder), "items": items})


def test_the_items_of_fewer_are_the_first_of_more(folder):
    few, many = (sources.load("rte", {**API, "data_dir": str(folder), "items": n})[0] for n in (20, 60))
    assert many[:20] == few


def test_hub(monkeypatch):
    calls = []

    def load_dataset(path, name=None, **options):
        calls.append((path, name, options["split"]))
        task = {"rte": "rte", "sst2": "sst", "all": "mmlu", "cola": "cola", "mrpc": "mrpc", "mutual": "dialogue"}[name]
        return datasets.Dataset.from_list([record(task, number) for number in range(40)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for task in TASKS:
        docs, known = sources.load(task, API)
        assert len(docs) == 30 and known["source"].startswith(f"hub:{TASKS[task].records.hub[0].path}")
    glue = "nyu-mll/glue"
    assert calls == [
        (glue, "rte", "train"), (glue, "sst2", "validation"), (glue, "cola", "validation"), (glue, "rte", "validation"),
        ("cais/mmlu", "all", "validation"), (glue, "mrpc", "validation"),
        ("lighteval/mutual_harness", "mutual", "validation"), (glue, "sst2", "validation"),
    ]  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_the_demo_has_every_task(task):
    docs, known = sources.load(task, {})
    assert known["source"] == known["order"] == "demo" and len(docs) >= 78
    labels = [sum(doc["gold"] == label for doc in docs) for label in range(len(TASKS[task].words))]
    assert min(labels) > 0 and (task in ("nli", "dialogue", "sentiment") or max(labels) - min(labels) <= 1)


# --------------------------------------------------------------------------------------------- mistakes, before loading

BROKEN = [
    ("rte", {"label": -1}, "the field 'label' should be 0 or 1, got -1"),
    ("rte", {"sentence2": None}, "the field 'sentence2' should be str, got NoneType"),
    ("cola", {"label": "entailment"}, "the field 'label' should be 0 or 1, got 'entailment'"),
    ("rte", {"label": True}, "the field 'label' should be 0 or 1, got True (0 is entailment, 1 is not_entailment)"),
    ("nli", {"label": "neutral"}, "the field 'label' should be 0 or 1, got 'neutral' (0 is entailment"),
    ("sst", {"label": 1.0}, "the field 'label' should be int or str, got float"),
    ("mrpc", {"label": None}, "the field 'label' should be int or str, got NoneType"),
    ("sst", {"sentence": "x\ud800"}, "the field 'sentence' holds a lone surrogate (\\ud800 as character 1)"),
    ("mmlu", {"choices": ["a", "b", "c", "\udfffd"]}, "the field 'choices' holds a lone surrogate (\\udfff as char"),
    ("mmlu", {"answer": 4}, "the field 'answer' should be 0 to 3, or A, B, C or D, got 4"),
    ("mmlu", {"answer": True}, "should be 0 to 3, or A, B, C or D, got True"),
    ("mmlu", {"choices": ["a", "b"]}, "the field 'choices' should hold 4 options, got 2"),
    ("dialogue", {"answers": "E"}, "the field 'answers' should be A, B, C or D, got 'E'"),
]


@pytest.mark.parametrize(("task", "change", "message"), BROKEN)
def test_a_broken_record_is_told_with_its_place(task, change, message, folder):
    file = folder / FILES[task]
    lines = file.read_text().splitlines()
    lines[4] = json.dumps(json.loads(lines[4]) | change)
    file.write_text("\n".join(lines))
    with pytest.raises(UserError) as error:
        before_loading.check_tasks([f"edithurt_glue_{task}"], {**API, "data_dir": str(folder)})
    assert f"{file}:5: " in str(error.value) and message in str(error.value)


def test_every_broken_record_is_told(folder):
    file = folder / FILES["sst"]
    lines = file.read_text().splitlines()
    lines[4] = lines[7] = json.dumps({"sentence": "x", "label": -1})
    file.write_text("\n".join(lines))
    with pytest.raises(UserError) as error:
        before_loading.check_tasks(["edithurt_glue_sst"], {**API, "data_dir": str(folder)})
    assert f"{file}:5: " in str(error.value) and f"{file}:8: " in str(error.value)
    file.write_text("\n".join([json.dumps({"sentence": "x"})] * 30))
    with pytest.raises(ConfigurationError, match="and 10 more records like these") as error:
        before_loading.check_tasks(["edithurt_glue_sst"], {**API, "data_dir": str(folder)})
    assert len(error.value.problems) == 21


def test_a_class_that_no_record_has_is_told(folder, caplog):
    file = folder / FILES["cola"]
    lines = [line for line in file.read_text().splitlines() if json.loads(line)["label"] == 1]
    file.write_text("\n".join(lines))
    sources.load("cola", {**API, "data_dir": str(folder)})
    assert "no item is answered with No" in caplog.text


def test_items_are_told_as_they_were_given(folder):
    with pytest.raises(UserError, match="items=-1: want"):  # the harness makes a float of it
        before_loading.check_tasks(["edithurt_glue_sst"], {**API, "data_dir": str(folder), "items": -1.0})


def test_every_mistake_is_told_at_once(folder):
    (folder / "cola_validation.jsonl").unlink()
    (folder / "mmlu_validation.jsonl").write_text('{"question": "q"}')
    (folder / "mrpc_validation.jsonl").write_text(json.dumps(record("mrpc", 0)))
    with pytest.raises(ConfigurationError) as error:
        before_loading.check_tasks([GROUP, "edithurt_boolq"], {**API, "data_dir": str(folder), "items": 0})
    problems = "\n".join(error.value.problems)
    for part in (
        "holds no data for cola", f"{folder / 'cola_validation.jsonl'}", "holds no data for boolq",
        "mmlu_validation.jsonl:1: the field 'answer' is missing",
        "edithurt_glue_mrpc: the 1 records", "items=0: want a whole number of at least 1",
    ):  # fmt: skip
        assert part in problems, part
    assert "holds no data for rte" not in problems


def test_offline_the_lacking_sets_are_named(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("offline")))
    with pytest.raises(UserError, match=r"no data for nli \(nyu-mll/glue\), .*mmlu \(cais/mmlu\), .*data_dir=FOLDER"):
        before_loading.check_tasks([GROUP], API)
    before_loading.check_tasks([GROUP], {})


def test_looking_for_data_says_nothing_of_the_demo(caplog):
    """Every process looks; that the data are the demo's is said once, by the one that loads them for all."""
    before_loading.check_tasks([GROUP], {})
    assert not caplog.records


def test_names():
    assert sources.wanted([GROUP, "edithurt_glue_sentiment"]) == [*GROUPED, "sentiment"]
    assert sources.wanted(["edithurt_rte", "rte"]) == []
