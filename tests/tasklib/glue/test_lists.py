"""The published lists: their order rebuilt, and what is asked compared with them by their checksums."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random

import pytest

from lm_eval_edit.tasklib.glue import documents, order, prompts, published, sources
from lm_eval_edit.tasklib.glue.catalogue import TASKS
from tests.support.glue_records import FILES, record

API = {"model": "an-api"}


def test_the_balanced_order_is_that_of_the_module_seeded():
    """As published: the module's own generator, one list a label in the order in which labels first come."""
    labels = [random.Random(5).choice((1, 0, 1)) for _ in range(3)] + [1, 0, 0, 1, 0, 1, 1, 0, 1, 0, 0, 1]
    lists: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        lists.setdefault(label, []).append(place)
    state = random.getstate()
    random.seed(37)
    for places in lists.values():
        random.shuffle(places)
    random.setstate(state)
    shortest = min(map(len, lists.values()))
    assert order.balanced(labels) == [places[turn] for turn in range(shortest) for places in lists.values()]
    assert random.getstate() == state  # a generator of our own


#: Set -> (how many records of each label, in the order in which labels first come; hash of the published list).
#: The hash is of the list of records as they were found in the public file, records counted label by label.
BALANCED_LISTS = {
    "sst": ((444, 428), "023f966c6b924930"),
    "rte": ((131, 146), "9228eb9542a22188"),
    "cola": ((721, 322), "d593c7c59efdbd49"),
    "mrpc": ((279, 129), "37f12190354edddf"),
    "mmlu": ((381, 379, 387, 384), "80ed70e5c698782a"),
}


@pytest.mark.parametrize("task", BALANCED_LISTS)
def test_the_balanced_lists_are_the_published_ones(task):
    """What a list takes of each label, and when, depends on nothing but how many records have which label."""
    counts, known = BALANCED_LISTS[task]
    listed = order.published([label for label, count in enumerate(counts) for _ in range(count)], TASKS[task].order)
    assert hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16] == known
    assert len(listed) == published.length(task) == min(counts) * len(counts)
    assert sum(counts) in TASKS[task].sizes


def test_the_order_from_the_end():
    """Labels take turns in the order in which they first come, though records are taken from the file's end."""
    assert order.from_the_end([1, 1, 1, 0, 1, 0]) == [4, 5, 2, 3, 1, 0]
    assert order.from_the_end([0, 1, 1]) == [0, 2, 1]
    assert order.from_the_end([]) == []


#: Numbers of the first published dialogues with each answer, counted from the list's start.
FIRST_DIALOGUES = {
    "B": [123, 137, 686, 335, 484, 255, 269, 296],
    "A": [862, 876, 453, 309, 241, 12, 282, 718],
    "C": [527, 122, 652, 875, 518, 295, 726, 732],
    "D": [645, 651, 679, 692, 447, 321, 490, 533],
}


@pytest.mark.parametrize("answer", FIRST_DIALOGUES)
def test_a_folder_of_files_is_listed_as_the_authors_file_system_did(answer):
    numbers = sorted(FIRST_DIALOGUES[answer])
    listed = order.as_listed([f"dev_{number}.txt" for number in numbers])
    assert [numbers[place] for place in listed[::-1]] == FIRST_DIALOGUES[answer]


def real(data, task, folder="", **more):
    return sources.load(task, {**API, "data_dir": str(data / folder), **more})


REAL = [
    ("sst", "", 872, "as published"),
    ("rte", "", 277, "as published, but 2 of 100 items are another text"),  # the file lacks their quotation marks
    ("nli", "paper_layout", 2489, "as published"),
    ("dialogue", "", 886, "as published"),
    ("sentiment", "", 872, "as published"),
    ("sentiment", "paper_layout", 872, "as published"),
]


@pytest.mark.parametrize(("task", "folder", "records", "known"), REAL)
def test_the_real_sets(data, task, folder, records, known):
    """Prompts and answers of the hundred are the published ones, each at its place, by their checksums."""
    docs, provenance = real(data, task, folder)
    assert (provenance["records"], provenance["order"], provenance["items"]) == (records, known, "published")
    assert provenance["listed"] == published.length(task)
    words = TASKS[task].words
    assert [sum(doc["gold"] == label for doc in docs) for label in range(len(words))] == [100 // len(words)] * len(
        words
    )
    assert [doc["item"] for doc in docs] == list(range(10, 110))


@pytest.mark.parametrize(
    ("task", "folder"), [("sst", ""), ("nli", "paper_layout"), ("dialogue", ""), ("sentiment", "")]
)
def test_the_whole_real_list(data, task, folder):
    docs, provenance = real(data, task, folder, items="all")
    assert len(docs) == published.length(task) and provenance["order"] == "as published"


def test_the_real_nli_list(data):
    """From the end, not entailed first: the index column says 2489, 2488, 2487; turns end after item 2,480."""
    docs, _ = real(data, "nli", "paper_layout", items="all")
    assert [doc["record"] for doc in docs[:3]] == [2488, 2487, 2486]  # from 0, and the file lacks one
    assert [doc["gold"] for doc in docs[:2480]] == [0, 1] * 1240 and {doc["gold"] for doc in docs[2480:]} == {1}


def test_rte_keeps_the_label_of_glue(data):
    file = [json.loads(line) for line in (data / "rte.jsonl").open()]
    docs, _ = real(data, "rte")
    assert all(doc["label"] == file[doc["record"]]["label"] == 1 - doc["gold"] for doc in docs)


def test_a_vague_file_name_does_not_pass_unnoticed(tmp_path, caplog):
    """`rte.jsonl` may be either split; of the wrong one the count tells, and of other records their texts."""
    lines = [json.dumps(record("rte", number)) + "\n" for number in range(277)]
    (tmp_path / "rte.jsonl").write_text("".join(lines))
    assert sources.load("rte", {**API, "data_dir": str(tmp_path)})[1]["order"] == "not as published"
    assert "rte: 100 of 100 items are not the published ones" in caplog.text
    _, known = sources.load("nli", {**API, "data_dir": str(tmp_path)})
    assert known["order"] == "other records"
    assert "nli: 277 records where the published list is made of 2489 or 2490" in caplog.text


# ------------------------------------------------------------------------------ lists that pass for the published ones


def as_if_published(monkeypatch, task, made):
    """Let the list of made-up records be the published one; returns it."""
    docs = documents.build(task, [("here", each) for each in made])
    names = [f"{each['id']}.txt" for each in made] if task == "dialogue" else [f"{n}.txt" for n in range(len(made))]
    first = order.as_listed(names) if task == "dialogue" else list(range(len(made)))
    listed = [first[n] for n in order.published([docs[n]["gold"] for n in first], TASKS[task].order)]
    known = [published.checksum(docs[n]) for n in listed]
    monkeypatch.setattr(published, "_lists", lambda: {task: known})
    return [made[n] for n in listed]


def load_of(task, made, folder, **more):
    (folder / FILES[task]).write_text("".join(json.dumps(each) + "\n" for each in made))
    return sources.load(task, {**API, "data_dir": str(folder), **more})


def of_many(task, count=150):
    """Records whose labels are no regular sequence, so that no order passes for another."""
    rng = random.Random(3)
    return [record(task, 4 * number + rng.randrange(4)) for number in range(count)]


@pytest.mark.parametrize("items", [None, 20, "all"])
@pytest.mark.parametrize("task", TASKS)
def test_the_public_file_and_the_list_itself_give_the_same_items(task, items, tmp_path, monkeypatch, caplog):
    """Whoever has the published list, and dumps it as it lies, is asked what the public file's owner is asked."""
    made = of_many(task)
    listed = as_if_published(monkeypatch, task, made)
    of_file, known = load_of(task, made, tmp_path, items=items)
    of_list, again = load_of(task, listed, tmp_path, items=items)
    assert known["order"] == again["order"] == "as published"
    texts = [[(getattr(prompts, task)(doc), doc["label"], doc["item"]) for doc in docs] for docs in (of_file, of_list)]
    assert texts[0] == texts[1] and [doc["record"] for doc in of_list] == [doc["item"] for doc in of_list]
    assert not caplog.records


def test_dialogues_without_their_names_are_numbered_as_they_lie(tmp_path, monkeypatch):
    made = [each | {"id": f"dev_{number}"} for number, each in enumerate(of_many("dialogue"), 1)]
    as_if_published(monkeypatch, "dialogue", made)
    bare = [{name: value for name, value in each.items() if name != "id"} for each in made]
    assert load_of("dialogue", bare, tmp_path)[1]["order"] == "as published"
    assert load_of("dialogue", made[::-1], tmp_path)[1]["order"] == "as published"  # by name, wherever they lie
    assert load_of("dialogue", bare[::-1], tmp_path)[1]["order"] != "as published"


def test_a_file_in_another_order_is_told(tmp_path, monkeypatch, caplog):
    made = of_many("mrpc")
    as_if_published(monkeypatch, "mrpc", made)
    monkeypatch.setitem(TASKS, "mrpc", dataclasses.replace(TASKS["mrpc"], sizes=(150,)))
    assert load_of("mrpc", made[::-1], tmp_path)[1]["order"] == "not as published"
    assert "other records, or in another order" in caplog.text


def test_a_few_other_texts_are_counted(tmp_path, monkeypatch, caplog):
    made = of_many("cola")
    listed = as_if_published(monkeypatch, "cola", made)
    for place in (9, 10, 40):  # the first is no item of a run
        listed[place]["sentence"] += "!"
    _, known = load_of("cola", listed, tmp_path)
    assert known["order"] == f"as published, but 2 of {known['documents']} items are another text"
    assert not caplog.records


def test_labels_may_be_written_as_the_published_lists_have_them(tmp_path):
    words = {0: "entailment", 1: "not_entailment"}
    for task, write in (("nli", words.__getitem__), ("rte", words.__getitem__), ("sst", str), ("mrpc", str)):
        made = of_many(task)
        plain, _ = load_of(task, made, tmp_path, items="all")
        written, _ = load_of(task, [each | {"label": write(each["label"])} for each in made], tmp_path, items="all")
        assert plain == written


def test_the_record_that_the_hub_has_more_comes_after_the_published_items():
    """Index 2164 of RTE train: without it every later record moves, and none of the hundred changes."""
    labels = [random.Random(0).randrange(2) for _ in range(2164)] + [place % 2 for place in range(326)]
    whole, lacking = order.from_the_end(labels), order.from_the_end(labels[:2164] + labels[2165:])
    assert [record - 1 for record in whole[:110]] == lacking[:110]
