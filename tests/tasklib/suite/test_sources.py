"""Where documents come from, and every message when they cannot be had."""

from __future__ import annotations

import json
import logging
import re

import datasets
import pytest

from lm_eval_edit import demo
from lm_eval_edit.errors import ConfigurationError, UserError
from lm_eval_edit.tasklib.records import hub, layouts
from lm_eval_edit.tasklib.records import sources as of_records
from lm_eval_edit.tasklib.suite import sources
from lm_eval_edit.tasklib.suite.catalogue import TASKS
from tests.support.suite_records import RECORDS

pytestmark = pytest.mark.libraries

API = {"model": "some-api-model"}  # names no tokenizer, so nothing is shortened

PAPER_TEXT = {
    "test-reasoning.jsonl": json.dumps(RECORDS["gsm8k"]) + "\n",
    "test-NLI.tsv": 'index\tsentence1\tsentence2\tlabel\n0\tHe said "no".\tHe spoke.\tentailment\n',
    "test-OpenDomainQA.jsonl": json.dumps({"question": "who wrote it?", "answer": ["Bob"], "output": ["\n\nBob did."]}),
    "test-ClosedDomainQA.jsonl": json.dumps({**RECORDS["boolq"], "title": "T"}),
    "test-dialogue/dev_10.txt": repr({**RECORDS["mutual"], "id": "dev_10"}),
    "test-dialogue/dev_9.txt": repr({**RECORDS["mutual"], "article": "f : nine .", "id": "dev_9"}),
    "test-summarization.json": json.dumps([RECORDS["samsum"]], indent=2),
    "test-NER.txt": "-DOCSTART- -X- -X- O\n\nBerg NNP B-NP B-PER\nspoke VBD B-VP O\n\nOslo NNP B-NP B-LOC\n",
    "test-SentimentAnalysis.tsv": 'sentence\tlabel\n"a charming" journey . \t1\n',
}


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        return path

    return write


@pytest.fixture(autouse=True)
def fresh_warning():
    of_records._warn_demo.cache_clear()
    yield
    of_records._warn_demo.cache_clear()


def load(task, folder, **metadata):
    return sources.load(task, {**API, "data_dir": str(folder), **metadata})


@pytest.mark.parametrize("name", ["{}.jsonl", "{}.json", "{}_{split}.jsonl", "{}_{split}.json"])
@pytest.mark.parametrize("task", TASKS)
def test_jsonl_names(task, name, write, tmp_path):
    path = write(name.format(TASKS[task].stem, split=TASKS[task].split), "\n" + json.dumps(RECORDS[task]) + "\r\n\n")
    docs, known = load(task, tmp_path)
    assert known["source"] == "folder:jsonl" and known["file"] == str(path) and known["records"] == 1
    assert re.fullmatch("[0-9a-f]{64}", known["sha256"])
    assert all(doc["source"] == "folder:jsonl" and not doc["shortened"] and not doc["overlong"] for doc in docs)


@pytest.mark.parametrize("root", ["task-data", "theirs/task-data", "."])
@pytest.mark.parametrize("task", TASKS)
def test_papers_layout(task, root, write, tmp_path):
    for name, text in PAPER_TEXT.items():
        write(f"{root}/{name}", text)
    docs, known = load(task, tmp_path)
    assert known["source"] == "folder:paper" and len(docs) == {"mutual": 2, "conll2003": 8}.get(task, 1)
    if task == "mutual":
        assert docs[0]["article"] == "f : nine ."
    if task == "conll2003":
        assert known["docstart_dropped"] == 1 and docs[0]["tags"] == ["B-PER", "O"]
    if task == "sst2":
        assert docs[0]["text"] == "a charming journey . "  # as csv reads it


def test_the_folder_itself_comes_before_its_sub_folders(write, tmp_path):
    write("a/task-data/test-reasoning.jsonl", PAPER_TEXT["test-reasoning.jsonl"])
    assert sources.resolve("gsm8k", {"data_dir": tmp_path}).name == "folder:paper"
    write("gsm8k_test.json", json.dumps([RECORDS["gsm8k"]]))
    assert sources.resolve("gsm8k", {"data_dir": tmp_path}).found == layouts.Found(
        tmp_path / "gsm8k_test.json", "jsonl"
    )


def test_another_split_is_not_taken(write, tmp_path):
    write("gsm8k_train.jsonl", json.dumps(RECORDS["gsm8k"]))
    with pytest.raises(UserError, match="holds no data for gsm8k"):
        load("gsm8k", tmp_path)


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ({"pretrained": "gpt2"}, "hub"),
        ({"pretrained": "gpt2", "data_dir": ""}, "hub"),
        ({"pretrained": "gpt2", "data_dir": "none"}, "hub"),
        ({"model": "an-api-model"}, "hub"),
        ({"pretrained": object()}, "hub"),
        ({"pretrained": "gpt2", "data_dir": "demo"}, "demo"),
        ({"pretrained": "demo"}, "demo"),
        ({"pretrained": str(demo.CHECKPOINT)}, "demo"),
        ({"pretrained": None}, "demo"),
        ({"pretrained": "none", "editor": "rome", "n_edits": 20}, "demo"),
        ({}, "demo"),
    ],
)
def test_which_source(metadata, name, write, tmp_path, monkeypatch):
    write("gsm8k.jsonl", json.dumps(RECORDS["gsm8k"]))
    monkeypatch.setattr(of_records, "DEMO_DATA", tmp_path)
    assert sources.resolve("gsm8k", metadata).name == name


def test_demo_warns_once(write, tmp_path, monkeypatch, caplog):
    for task in ("gsm8k", "sst2"):
        write(f"{task}.jsonl", json.dumps(RECORDS[task]))
    monkeypatch.setattr(of_records, "DEMO_DATA", tmp_path)
    monkeypatch.setattr("lm_eval_edit.tasklib.shorten.DEMO_CHECKPOINT", tmp_path / "absent")
    with caplog.at_level(logging.WARNING):
        for task in ("gsm8k", "sst2", "gsm8k"):
            docs, known = sources.load(task, {})
            assert known["source"] == docs[0]["source"] == "demo"
    assert [r.message.count("demo data: not a benchmark result") for r in caplog.records] == [1]


@pytest.mark.parametrize("task", TASKS)
def test_the_demo_has_every_task(task):
    if not of_records.DEMO_DATA.is_dir():
        pytest.skip("lm_eval_edit/demo/data has not been generated")
    docs, known = sources.load(task, {})
    assert len(docs) >= 10 and known["source"] == "demo" and known["overlong"] == 0
    assert known.get("with_passage", True)


def test_dataset_writes_its_provenance_into_the_configuration(write, tmp_path):
    write("gsm8k.jsonl", json.dumps(RECORDS["gsm8k"]))
    provenance = {}
    made = sources.dataset(
        "gsm8k", provenance, data_dir=str(tmp_path), version=1.0, n_edits=3, config_source="x", **API
    )
    assert list(made) == ["test"] and isinstance(made["test"], datasets.Dataset)
    assert made["test"][0]["answer"] == "1,003"
    assert provenance["source"] == "folder:jsonl" and provenance["documents"] == 1 and provenance["shortened"] == 0
    assert provenance["prompt_budget"] is None


# What is wrong with a folder


def test_a_missing_file_lists_every_path(tmp_path):
    (tmp_path / "theirs").mkdir()
    with pytest.raises(UserError) as error:
        load("samsum", tmp_path)
    wanted = [f"samsum{split}.{ending}" for split in ("", "_validation", "_dev") for ending in ("jsonl", "json")]
    wanted += [
        "test-summarization.json",
        "task-data/test-summarization.json",
        "theirs/task-data/test-summarization.json",
    ]
    assert str(error.value) == (
        f"data_dir={tmp_path} holds no data for samsum; looked for\n"
        + "\n".join(f"  - {tmp_path / name}" for name in wanted)
    )


def test_check_data_dir(write, tmp_path):
    assert sources.check_data_dir(None) == []
    absent = tmp_path / "absent"
    assert sources.check_data_dir(absent) == [f"data_dir={absent}: no such folder"]
    file = write("file.txt", "")
    assert sources.check_data_dir(str(file)) == [f"data_dir={file}: not a folder"]
    assert sources.check_data_dir(tmp_path) == []
    with pytest.raises(UserError, match=re.escape(f"data_dir={absent}: no such folder")):
        sources.resolve("rte", {"data_dir": str(absent)})


def test_check_tasks_tells_every_task_without_data_before_anything_loads(write, tmp_path):
    write("rte.jsonl", "")
    metadata = {"data_dir": str(tmp_path)}
    sources.check_tasks(["edithurt_rte", "hellaswag"], metadata)
    with pytest.raises(ConfigurationError, match=r"holds no data for sst2; looked for") as caught:
        sources.check_tasks(["edithurt_rte", "edithurt_sst2", "edithurt_nq"], metadata)
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigurationError) as caught:
        sources.check_tasks(["edithurt_suite"], metadata)
    assert len(caught.value.problems) == 7


BROKEN = [
    ("gsm8k", "gsm8k.jsonl", '{"question": "q"}\n{"question": "q"}', r"gsm8k.jsonl:1: the field 'answer' is missing"),
    ("gsm8k", "gsm8k.jsonl", "\n{]\n", r"gsm8k.jsonl:2: broken JSON: Expecting property name .*\(column 2\)"),
    ("gsm8k", "gsm8k.jsonl", "3\n", "gsm8k.jsonl:1: a JSON object is wanted, got int"),
    ("gsm8k", "gsm8k.json", '[{"question": "q"},\n {]', "gsm8k.json:2: broken JSON"),
    ("gsm8k", "gsm8k.json", '[{"question": "q"}]', r"gsm8k.json: record 1: the field 'answer' is missing"),
    ("gsm8k", "gsm8k.jsonl", "\n \n", "gsm8k.jsonl holds no record"),
    ("gsm8k", "gsm8k.jsonl", '{"question": "q", "answer": "3"}', "'answer' should end with '#### <number>'"),
    ("gsm8k", "gsm8k.jsonl", '{"question": 1, "answer": "#### 3"}', "'question' should be str, got int"),
    ("rte", "rte.jsonl", '{"sentence1": "", "sentence2": "", "label": -1}', "'label' should be 0 or 1, got -1"),
    (
        "rte",
        "test-NLI.tsv",
        "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n",
        "tsv:2: .* 0 or 1, got 'maybe'",
    ),
    ("rte", "test-NLI.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\n", r"tsv:2: 2 columns where the header has 4"),
    ("rte", "test-NLI.tsv", "index\tsentence1\tlabel\n0\ta\tentailment\n", r"tsv:2: the field 'sentence2' is missing"),
    ("sst2", "test-SentimentAnalysis.tsv", "sentence\tlabel\n", "test-SentimentAnalysis.tsv holds no record"),
    ("nq", "nq_open.jsonl", '{"question": "q", "answer": []}', "'answer' should be a list of at least one string"),
    ("nq", "nq_open.jsonl", '{"question": "q", "answer": ["a"], "passages": []}', "'passages' should be a list of at"),
    ("boolq", "boolq.jsonl", '{"question": "q", "passage": "p"}', "the field 'answer' is missing"),
    ("boolq", "boolq.jsonl", '{"question": "q", "passage": "p", "answer": "yes"}', "'answer' should be int, got str"),
    ("mutual", "mutual.jsonl", '{"article": "", "options": ["a"], "answers": "A"}', "should hold 4 options, got 1"),
    ("mutual", "mutual.jsonl", '{"article": "", "options": ["a"], "answers": "A"}', "mutual.jsonl:1: "),
    ("mutual", "mutual.jsonl", '{"options": ["", "", "", ""], "answers": "E"}', "should be A, B, C or D, got 'E'"),
    ("mutual", "test-dialogue/dev_1.txt", "__import__('os').abort()", r"dev_1.txt:1: not a Python literal"),
    ("mutual", "test-dialogue/dev_1.txt", "{'a': ", r"dev_1.txt:1: not a Python literal"),
    ("mutual", "test-dialogue/dev_1.txt", "[1]", "dev_1.txt: a dictionary is wanted, got list"),
    ("mutual", "test-dialogue/other.txt", "{}", "test-dialogue holds no record"),
    ("conll2003", "conll2003.jsonl", '{"tokens": ["a"], "ner_tags": []}', r"jsonl:1: 0 'ner_tags' for 1 'tokens'"),
    (
        "conll2003",
        "conll2003.jsonl",
        '{"tokens": ["a"], "ner_tags": [9]}',
        "'ner_tags' holds an unknown tag .known: 0 O, 1",
    ),
    ("conll2003", "conll2003.jsonl", '{"tokens": ["a"], "ner_tags": [-1]}', "'ner_tags' holds an unknown tag"),
    ("conll2003", "conll2003.jsonl", '{"tokens": ["a"], "ner_tags": [[]]}', "'ner_tags' holds an unknown tag"),
    ("conll2003", "test-NER.txt", "a O\n\nb\n", r"test-NER.txt:3: a word and its tag are wanted, got 'b'"),
    ("samsum", "samsum.jsonl", '{"dialogue": null, "summary": ""}', "'dialogue' should be str, got NoneType"),
]


@pytest.mark.parametrize(("task", "name", "text", "message"), BROKEN)
def test_broken_data(task, name, text, message, write, tmp_path):
    write(name, text)
    with pytest.raises(UserError, match=message):
        load(task, tmp_path)


def test_bytes_that_are_not_text(tmp_path):
    (tmp_path / "gsm8k.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"gsm8k\.jsonl cannot be read: "):
        load("gsm8k", tmp_path)


# The hub, which tests never reach


def serve(monkeypatch, answers):
    """`datasets.load_dataset` gives, or raises, what `answers` has for a path; returns the list of calls."""
    calls = []

    def load_dataset(path, name=None, **options):
        calls.append((path, name, options))
        answer = answers.get(path, ConnectionError("Couldn't reach the Hub"))
        if isinstance(answer, Exception):
            raise answer
        return datasets.Dataset.from_list(answer)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize("task", TASKS)
def test_hub(task, monkeypatch):
    path = TASKS[task].hub[0].path
    record = {**RECORDS[task], "extra": 1}
    if task == "nq":
        record = {"question": "who?", "answers": ["Bob"], "text": "Bob did."}
    if task == "boolq":
        record = {"question": "q", "passage": "p", "label": 0}
    calls = serve(monkeypatch, {path: [record]})
    docs, known = sources.load(task, API)
    config = f"/{TASKS[task].hub[0].config}" if TASKS[task].hub[0].config else ""
    assert known["source"] == docs[0]["source"] == f"hub:{path}{config}@main"
    assert calls[0][2] == {"split": TASKS[task].hub[0].split, "revision": "main"}
    if task == "nq":
        assert docs[0]["passage"] == "Bob did." and known["with_passage"] is True


def test_the_commit_is_named_where_it_is_known():
    rows = datasets.Dataset.from_list([RECORDS["gsm8k"]])
    rows.info.download_checksums = {f"hf://datasets/openai/gsm8k@{'0a' * 20}/main/test.parquet": None}
    assert hub._name(TASKS["gsm8k"].hub[0], rows) == f"hub:openai/gsm8k/main@{'0a' * 20}"


@pytest.mark.parametrize("task", TASKS)
def test_no_network(task, monkeypatch):
    serve(monkeypatch, {})
    with pytest.raises(UserError) as error:
        sources.load(task, API)
    message = str(error.value)
    assert message.startswith(f"task {task}: its data could not be loaded from the Hugging Face hub\n")
    assert f"{TASKS[task].hub[0].path}: no network" in message
    assert "data_dir=/path/to/data" in message and f"{TASKS[task].stem}.jsonl" in message


def test_offline_mode_is_no_network():
    """The library's own words, from a real call: tests run with HF_HUB_OFFLINE=1."""
    with pytest.raises(UserError, match="openai/gsm8k: no network"):
        sources.load("gsm8k", API)


def test_offline_every_task_without_data_is_told_before_anything_loads(monkeypatch, tmp_path):
    serve(monkeypatch, {"openai/gsm8k": [RECORDS["gsm8k"]]})
    with pytest.raises(UserError, match=r"no data for rte \(nyu-mll/glue\), sst2 \(.*: .* offline") as error:
        sources.check_offline(["edithurt_gsm8k", "edithurt_rte", "edithurt_sst2", "hellaswag"], API)
    assert "data_dir=FOLDER" in str(error.value) and "rte.jsonl, sst2.jsonl" in str(error.value)
    sources.check_offline(["edithurt_gsm8k", "edithurt_efficacy"], API)
    sources.check_offline(["edithurt_suite"], {})  # the demo's data
    sources.check_offline(["edithurt_rte"], {**API, "data_dir": "demo"})
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # the hub is asked when the data are needed
    sources.check_offline(["edithurt_suite"], API)


def test_a_missing_column_is_named(monkeypatch):
    serve(monkeypatch, {"openai/gsm8k": [{"question": "q", "solution": "s"}]})
    with pytest.raises(
        UserError, match=r"openai/gsm8k: the column 'answer' is missing \(there are: question, solution\)"
    ):
        sources.load("gsm8k", API)


def test_the_next_candidate_is_taken_with_a_warning(monkeypatch, caplog):
    serve(
        monkeypatch,
        {
            "florin-hf/nq_open_gold": [{"question": "q"}],
            "google-research-datasets/nq_open": [{"question": "q", "answer": ["a"]}],
        },
    )
    docs, known = sources.load("nq", API)
    assert docs[0]["passage"] is None and known["with_passage"] is False
    assert "the column 'answers' is missing" in caplog.text and "asked closed-book" in caplog.text


def test_a_missing_network_does_not_change_the_prompt(monkeypatch):
    serve(monkeypatch, {"google-research-datasets/nq_open": [{"question": "q", "answer": ["a"]}]})
    with pytest.raises(UserError, match="no network"):
        sources.load("nq", API)
