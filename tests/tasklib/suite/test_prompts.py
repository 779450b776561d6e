"""Prompts to the byte, and the real data in both layouts. The literals are those of the protocol, not of the code."""

from __future__ import annotations

import csv
import json

import pytest

from lm_eval_edit.errors import UserError
from lm_eval_edit.tasklib.suite import documents, prompts, sources
from lm_eval_edit.tasklib.suite.catalogue import TASKS
from tests.support.suite_records import CASES


@pytest.mark.parametrize("task", CASES)
def test_prompt_and_target(task):
    record, prompt, target = CASES[task]
    (doc,), _ = documents.build(task, [("here", record)])
    assert getattr(prompts, task)(doc) == prompt
    assert getattr(prompts, f"{task}_target")(doc) == target


def test_conll2003_asks_four_times():
    record = {"tokens": ["Mr.", "Berg", ",", "of", "Oslo", ".", "..."], "ner_tags": [0, 1, 0, 0, 5, 0, 0]}
    docs, notes = documents.build("conll2003", [("here", record)])
    names = ["Person", "Location", "Organization", "Miscellaneous"]
    assert [prompts.conll2003(doc) for doc in docs] == [
        f"Please identify {name} Entity from the given text. Text: Mr. Berg, of Oslo. ... Entity:" for name in names
    ]
    assert [prompts.conll2003_target(doc) for doc in docs] == ["Berg", "Oslo", "", ""]
    assert {doc["sentence_id"] for doc in docs} == {0} and notes == {"records": 1, "docstart_dropped": 0}


def test_a_leading_full_stop_is_lost():
    assert prompts.sentence_text([".", "Oslo", ",", "x"]) == " Oslo, x"


def test_closed_book_without_a_passage():
    (doc,), notes = documents.build("nq", [("here", {"question": "who?", "answer": ["x"]})])
    assert prompts.nq(doc) == "Question: who? Answer:"
    assert notes["with_passage"] is False


def test_hub_variants_of_a_record():
    """SuperGLUE's BoolQ has `label`; a passage may come as a bare string; tags come as strings or integers."""
    (doc,), _ = documents.build("boolq", [("here", {"question": "q", "passage": "p", "label": 1, "idx": 0})])
    assert prompts.boolq_target(doc) == "yes"
    (doc,), notes = documents.build("nq", [("here", {"question": "q", "answer": ["a"], "passages": "p"})])
    assert doc["passage"] == "p" and notes["with_passage"] is True
    a, _ = documents.build("conll2003", [("here", {"tokens": ["x", "y"], "ner_tags": [7, 8]})])
    b, _ = documents.build("conll2003", [("here", {"tokens": ["x", "y"], "ner_tags": ["B-MISC", "I-MISC"]})])
    assert a == b


# Figures of the data, from the protocol and from counting lines.
JSONL = {"gsm8k": 1319, "rte": 277, "nq": 3610, "boolq": 3270, "mutual": 886, "conll2003": 13_000, "sst2": 872}
PAPER = {
    "gsm8k": 1319,
    "rte": 2489,
    "nq": 3610,
    "boolq": 3267,
    "mutual": 100,
    "samsum": 818,
    "conll2003": 13_000,
    "sst2": 872,
}


@pytest.fixture
def load(data):
    """Documents without a model's budget, so that the texts are whole."""

    def load(task, folder=""):
        return sources.load(task, {"data_dir": str(data / folder), "model": "an-api"})

    return load


@pytest.mark.parametrize("task", TASKS)
def test_real_data_in_jsonl(task, load):
    docs, known = load(task)
    if task == "samsum":  # stands only in the sub-folder with the paper's layout
        assert len(docs) == 818 and known["source"] == "folder:paper"
        return
    assert len(docs) == JSONL[task] == known["documents"] and known["source"] == "folder:jsonl"
    assert {doc["source"] for doc in docs} == {"folder:jsonl"}


@pytest.mark.parametrize("task", TASKS)
def test_real_data_in_the_papers_layout(task, load):
    docs, known = load(task, "paper_layout")
    assert len(docs) == PAPER[task] and known["source"] == "folder:paper"
    if task == "conll2003":
        assert known["docstart_dropped"] == 216
    if task == "nq":
        assert known["with_passage"] is True


@pytest.mark.parametrize("task", ["gsm8k", "conll2003", "sst2"])
def test_both_layouts_give_the_same_prompts(task, load):
    prompt = getattr(prompts, task)
    assert [prompt(doc) for doc in load(task)[0]] == [prompt(doc) for doc in load(task, "paper_layout")[0]]


def test_mutual_dialogues_are_in_numeric_order(load):
    assert load("mutual")[0][:10] == [
        {**doc, "source": "folder:jsonl"} for doc in load("mutual", "paper_layout")[0][:10]
    ]


def test_the_tsv_is_read_with_quoting(data, load):
    """As the paper's script does: `csv` with its defaults. 69 of the prompts differ from a plain split at tabs."""
    path = data / "paper_layout/task-data/test-NLI.tsv"
    with path.open(encoding="utf-8") as lines:
        rows = list(csv.reader(lines, delimiter="\t"))[1:]
    plain = [line.split("\t") for line in filter(None, path.read_text(encoding="utf-8").split("\n")[1:])]
    docs = load("rte", "paper_layout")[0]
    for (_, sentence1, sentence2, label), doc in zip(rows, docs, strict=True):
        assert prompts.rte(doc) == f"{sentence1} entails the {sentence2}. True or False? answer:"
        assert prompts.rte_target(doc) == ("True" if label == "entailment" else "False")
    assert sum(row != other for row, other in zip(rows, plain, strict=True)) == 69


def test_quotation_marks_around_a_field_are_lost(tmp_path):
    (tmp_path / "task-data").mkdir()
    rows = [
        ["0", '"No," he said.', "He said no.", "entailment"],
        ["1", '"No"', 'He said "no".', "not_entailment"],
        ["2", 'He said ""no"".', '"He ""said"" no."', "entailment"],
    ]
    lines = ["index\tsentence1\tsentence2\tlabel", *map("\t".join, rows)]
    (tmp_path / "task-data/test-NLI.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    docs, known = sources.load("rte", {"data_dir": str(tmp_path)})
    assert known["source"] == "folder:paper"
    assert [(doc["sentence1"], doc["sentence2"]) for doc in docs] == [
        ("No, he said.", "He said no."),
        ("No", 'He said "no".'),
        ('He said ""no"".', 'He "said" no.'),
    ]


def test_a_quotation_mark_that_is_never_closed_is_refused(tmp_path):
    """It swallows the lines after it; with enough of them csv itself gives up."""
    (tmp_path / "task-data").mkdir()
    path = tmp_path / "task-data/test-NLI.tsv"
    for many in (1, 20_000):
        lines = ["index\tsentence1\tsentence2\tlabel", '0\t"No', *["1\tYes.\tYes.\tentailment"] * many]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        with pytest.raises(UserError, match=r"test-NLI\.tsv"):
            sources.load("rte", {"data_dir": str(tmp_path)})


def test_carriage_returns_survive(data, load):
    raw = json.loads((data / "paper_layout/task-data/test-summarization.json").read_text(encoding="utf-8"))
    docs = load("samsum", "paper_layout")[0]
    assert [prompts.samsum(doc) for doc in docs] == [f"{row['dialogue']}\nTL;DR:" for row in raw]
    assert any("\r\n" in doc["dialogue"] for doc in docs)
