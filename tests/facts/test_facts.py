"""Readers of every format, what cannot be edited, and errors that name file and line."""

from __future__ import annotations

import json

import pytest

from lm_eval_edit import EditSchedule, Fact, UserError, load_facts
from lm_eval_edit.facts.fact import Probe
from lm_eval_edit.tasklib.editing import documents as editing_documents

ZSRE = {
    "subject": "Watts Humphrey", "src": "What university did Watts Humphrey attend?", "pred": "Trinity College",
    "rephrase": "Where did Watts Humphrey study?", "alt": "University of Michigan",
    "answers": ["Illinois Institute of Technology"], "loc": "nq question: who played desmond doss", "loc_ans": "Andrew",
}  # fmt: skip
COUNTERFACT = {
    "case_id": 7, "requested_rewrite": {
        "prompt": "The mother tongue of {} is", "relation_id": "P103", "target_new": {"str": "English", "id": "Q1"},
        "target_true": {"str": "French", "id": "Q2"}, "subject": "Danielle Darrieux"},
    "paraphrase_prompts": ["Shayna does this. Danielle Darrieux, a native"],
    "neighborhood_prompts": ["The mother tongue of Léon Blum is", "The native language of Montesquieu is"],
}  # fmt: skip
FLAT = {
    "case_id": 3, "prompt": "The mother tongue of Danielle Darrieux is", "subject": "Danielle Darrieux",
    "target_new": "English", "ground_truth": "French", "rephrase_prompt": "Danielle Darrieux, a native",
    "locality_prompt": "The capital of Peru is", "locality_ground_truth": "Lima",
}  # fmt: skip
KNOWEDIT = {
    "subject": "Leo Arons", "prompt": "The place of death of Leo Arons is", "target_new": "Berlin",
    "ground_truth": ["London"], "portability": {}, "rephrase": "Leo Arons died in",
    "locality": {"Relation_Specificity": [{"prompt": "The job of Leo Arons is", "ground_truth": [["physicist"]]}]},
}  # fmt: skip
OWN = {
    "id": "x1",
    "subject": "Ann",
    "prompt": "{} lives in",
    "target_new": "Oslo",
    "locality": [{"prompt": "p", "answer": "a"}],
}


def write(tmp_path, *records, name="facts.jsonl"):
    file = tmp_path / name
    file.write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return file


def test_zsre_edits_towards_alt(tmp_path):
    (fact,) = load_facts(write(tmp_path, ZSRE))
    assert fact.target_new == "University of Michigan" and fact.target_true == "Illinois Institute of Technology"
    assert fact.prediction == "Trinity College" and fact.paraphrases == ("Where did Watts Humphrey study?",)
    assert fact.template == "What university did {} attend?" and fact.text == ZSRE["src"]
    assert fact.locality == (Probe("nq question: who played desmond doss", "Andrew"),) and fact.id == "0"


def test_counterfact_neighbours_keep_the_true_object(tmp_path):
    (fact,) = load_facts(write(tmp_path, COUNTERFACT))
    assert (fact.id, fact.relation, fact.target_new, fact.target_true) == ("7", "P103", "English", "French")
    assert fact.text == "The mother tongue of Danielle Darrieux is" and fact.target == " English"
    assert [probe.answer for probe in fact.locality] == ["French", "French"]


def test_flat_and_knowedit_forms(tmp_path):
    flat, knowedit = load_facts(write(tmp_path, FLAT, KNOWEDIT))
    assert flat.target_true == "French" and flat.locality == (Probe("The capital of Peru is", "Lima"),)
    assert flat.paraphrases == ("Danielle Darrieux, a native",)
    assert knowedit.target_true == "London" and knowedit.paraphrases == ("Leo Arons died in",)
    assert knowedit.locality == (Probe("The job of Leo Arons is", "physicist"),)


def test_arrays_and_lines_and_formats_mix_and_records_round_trip(tmp_path):
    array = tmp_path / "facts.json"
    array.write_text(json.dumps([OWN, COUNTERFACT], indent=1))
    facts = load_facts(array)
    assert [fact.id for fact in facts] == ["x1", "7"]
    again = load_facts(write(tmp_path, *(fact.record() for fact in facts)))
    assert again.items == facts.items and again.sha256 == facts.sha256
    assert load_facts(write(tmp_path, OWN)).sha256 != facts.sha256


def test_real_files(data):
    zsre, counterfact = load_facts(data / "zsre.jsonl"), load_facts(data / "counterfact.jsonl")
    assert len(zsre) + len(zsre.skipped) == 1037 and len(zsre) > 1000
    assert len(counterfact) == 1031 and not counterfact.skipped
    assert all(fact.template.count("{}") == 1 and fact.subject in fact.text for fact in (*zsre, *counterfact))
    assert load_facts("zsre", data_dir=data).items == zsre.items
    paper = load_facts("zsre", data_dir=data / "paper_layout")
    assert paper.items == zsre.items


@pytest.mark.parametrize(
    ("prompt", "template"),
    [
        ("Ann is an annual Ann", "{} is an annual Ann"),
        ("Annual report of Ann today", "Annual report of {} today"),  # the subject as a word, not inside another
        ("What of {}?", "What of {}?"),
    ],
)
def test_where_the_subject_stands(prompt, template):
    assert Fact("Ann", prompt, "x").template == template


def test_uneditable_records_are_skipped_counted_and_listed(tmp_path):
    records = [
        OWN,
        OWN | {"id": "empty", "target_new": " "},
        OWN | {"id": "absent", "prompt": "Where is it"},
        OWN | {"id": "twice", "prompt": "{} and {}"},
    ]
    facts = load_facts(write(tmp_path, *records))
    assert [fact.id for fact in facts] == ["x1"]
    assert [(skipped.id, skipped.reason.split("'")[0].strip()) for skipped in facts.skipped] == [
        ("empty", "the target is empty"),
        ("absent", "the subject"),
        ("twice", "the prompt holds {} more than once"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"subject": "A", "prompt": "{} x", "target_new": "y"}\n{"subject": \n', r"bad.jsonl, line 2: not JSON"),
        ('[{"subject": "A",\n "prompt" }]', r"bad.jsonl, line 2: not JSON"),
        ('{"subject": "A", "prompt": "{} x"}\n', r"bad.jsonl, record 1: field 'target_new' is missing"),
        ('{"subject": "A", "src": "A x"}\n', r"record 1: field 'alt' is missing \(read as a ZsRE record"),
        ('"text"\n', r"record 1: a fact is a JSON object with fields; got str"),
        ('{"subject": [3], "prompt": "x", "target_new": "y"}', r"record 1: subject should be text; got \[3\]"),
        *(
            (json.dumps(OWN | {key: ["Paris"]}), rf"record 1: {key} should be text; got \['Paris'\]")
            for key in ("target_new", "target_true", "prediction", "question", "relation")
        ),
        (json.dumps(OWN | {"target_true": True}), r"record 1: target_true should be text; got True"),
        (json.dumps(OWN | {"locality": [{"prompt": "x", "answer": None}]}), r"a locality answer should be text; got N"),
        (json.dumps(OWN | {"locality": [{"prompt": {}, "answer": "x"}]}), r"a locality prompt should be text; got {}"),
    ],
)
def test_broken_files_name_file_and_line(tmp_path, text, message):
    file = tmp_path / "bad.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        load_facts(file)


def test_numbers_are_taken_as_their_digits(tmp_path):
    probe = {"prompt": "The other was founded in", "answer": 1851}
    file = write(tmp_path, OWN | {"target_new": 1900, "target_true": 1850, "locality": [probe]})
    (fact,) = load_facts(file)
    assert (fact.target_new, fact.target_true, fact.locality[0].answer) == ("1900", "1850", "1851")
    for task in ("efficacy", "locality"):
        ((doc,), _) = editing_documents.load(task, {"edit_dataset": str(file), "editor": "none"})
        assert {doc["target"], doc["other"]} <= {" 1900", " 1850", " 1851"}


def test_a_file_is_read_and_hashed_once_while_it_stays_as_it_is(tmp_path, monkeypatch):
    """A run asks for its facts several times: for the plan, for each task, for the results."""
    from lm_eval_edit.facts import fact as module

    parsed, hashed = [], []
    parse, hash_json = module.parse_records, module.hash_json
    monkeypatch.setattr(module, "parse_records", lambda *args, **more: parsed.append(args) or parse(*args, **more))
    monkeypatch.setattr(module, "hash_json", lambda *args: hashed.append(args) or hash_json(*args))
    file = write(tmp_path, OWN)
    metadata = {"edit_dataset": str(file), "editor": "none"}
    editing_documents.check_tasks(["edithurt_efficacy", "edithurt_locality"], metadata)
    for task in ("efficacy", "locality"):
        editing_documents.load(task, metadata)
    assert (len(parsed), len(hashed)) == (1, 1)
    write(tmp_path, OWN, OWN | {"id": "x2"})
    assert len(load_facts(file)) == 2 and len(parsed) == 3


def test_missing_sources_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"edit_dataset=zsr: no such file, and not one of the named sets demo, zsre"):
        load_facts("zsr")
    write(tmp_path, OWN)
    with pytest.raises(
        UserError, match=r"is a folder; give a file of facts, such as one of those in it: \w+\.jsonl?\. "
    ):
        load_facts(tmp_path)
    with pytest.raises(UserError, match=r"holds no counterfact facts; looked for .*counterfact.jsonl"):
        load_facts("counterfact", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"records 1 and 2 have the same id 'x1'"):
        load_facts(write(tmp_path, OWN, OWN))


def test_the_hub_without_network_names_data_dir(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"could not be fetched from the hub .* data_dir="):
        load_facts("counterfact")


# --------------------------------------------------------------------------------------------------------- the schedule

FACTS = [Fact("s", "{}", "t", id=str(i)) for i in range(100)]


def ids(schedule):
    return [[fact.id for fact in operation] for operation in schedule.operations(FACTS)]


def test_prefixes_nest_and_seeds_differ():
    long = [fact.id for fact in EditSchedule(50, seed=3).order(FACTS)]
    assert [fact.id for fact in EditSchedule(20, seed=3).order(FACTS)] == long[:20]
    assert long != sorted(long, key=int) and len(set(long)) == 50
    assert [fact.id for fact in EditSchedule(50, seed=4).order(FACTS)] != long
    assert [fact.id for fact in EditSchedule(10, seed=3, offset=5).order(FACTS)] == long[5:15]


def test_without_a_seed_the_file_order_is_kept():
    assert ids(EditSchedule(5, 2, seed=None, offset=10)) == [["10", "11"], ["12", "13"], ["14"]]


def test_the_papers_four_settings():
    assert [len(operation) for operation in ids(EditSchedule(1, 1))] == [1]
    assert [len(operation) for operation in ids(EditSchedule(6, 1))] == [1] * 6
    assert [len(operation) for operation in ids(EditSchedule(6, 6))] == [6]
    assert [len(operation) for operation in ids(EditSchedule(6, 3))] == [3, 3]


def test_too_few_facts_says_how_many_there_are():
    with pytest.raises(UserError, match=r"n_edits=101: only 100 usable facts are there \(of 100\)"):
        EditSchedule(101).operations(FACTS)
    with pytest.raises(UserError, match=r"n_edits=60: only 50 usable facts are there after edit_offset=50"):
        EditSchedule(60, offset=50).operations(FACTS)
    with pytest.raises(UserError, match=r"n_edits=-1: want a whole number of at least 0"):
        EditSchedule(-1)


def test_sampling_leaves_the_global_state_alone():
    import random

    random.seed(5)
    state = random.getstate()
    EditSchedule(20).operations(FACTS)
    assert random.getstate() == state
