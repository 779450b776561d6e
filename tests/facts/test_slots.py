"""Where the subject stands, and what braces mean."""

from __future__ import annotations

import pickle

import pytest

from lm_eval_edit.editors._shared.rows import prompt_row
from lm_eval_edit.facts.fact import Fact, in_clear, read_facts, with_slot
from lm_eval_edit.facts.slots import Template
from tests.support.made_up_tokenizers import byte_level

DICT = "In Python, {} is an empty dict and the type of dict is"


def read(**record):
    facts = read_facts([(1, record)], "x")
    return facts.items[0] if facts.items else facts.skipped[0].reason


def subject_of(fact):
    """What an editor takes for the subject: the text up to the subject's last token, of one byte each."""
    row = prompt_row(byte_level(), fact.template, fact.subject)
    return fact.text.encode()[: row.subject_last + 1].decode()


@pytest.mark.parametrize("subject", ["{", "}", " }"])
def test_the_place_is_not_a_subject_that_is_one_of_its_braces(subject):
    fact = Fact(subject, "The {} is", " one", " two", id="1")
    assert fact.template.sides == ("The ", " is") and fact.text == f"The {subject} is"
    assert Fact(subject, f"The {subject} is", " one", " two", id="1").text == f"The {subject} is"


def test_braces_beside_the_subject_in_clear():
    flat = read(subject="dict", prompt=DICT, target_new="list", ground_truth="type")
    assert flat.text == DICT and subject_of(flat) == "In Python, {} is an empty dict"
    reason = read(subject="dict", prompt=DICT, target_new="list")
    assert reason.endswith("say in subject_at which is the subject's place (11 or 26)")
    assert read(subject="dict", prompt=DICT, target_new="list", subject_at=26).text == DICT
    stated = read(subject="dict", prompt=DICT, target_new="list", subject_at=11)
    assert stated.text == DICT.replace("{}", "dict") and subject_of(stated) == "In Python, dict"
    assert stated.record()["subject_at"] == 11
    assert "neither {} nor the subject begins there" in read(subject="dict", prompt=DICT, target_new="x", subject_at=3)
    rewrite = {"subject": "dict", "prompt": DICT, "target_new": {"str": "list"}, "target_true": {"str": "type"}}
    assert read(requested_rewrite=rewrite).text == DICT.replace("{}", "dict")  # CounterFact's is always the place


def test_braces_beside_a_subject_in_a_script_without_spaces():
    prompt = "在Python中，{}是空字典，字典的类型是"
    assert "say in subject_at which is the subject's place (9 or 13)" in read(
        subject="字典", prompt=prompt, target_new="类"
    )
    flat = read(subject="字典", prompt=prompt, target_new="类", ground_truth="型")
    assert flat.text == prompt
    assert read(subject="中", prompt="{}是中国人", target_new="类").text == "中是中国人"
    assert in_clear(prompt, "字典") == prompt


@pytest.mark.parametrize(
    ("subject", "prompt", "text", "end"),
    [
        ("Rome", "{x} {} } is", "{x} Rome } is", "{x} Rome"),
        ("dict{}", "A {} is", "A dict{} is", "A dict{}"),
        ("dict{}", "A dict{} is", "A dict{} is", "A dict{}"),
        ("{}", "A {} is", "A {} is", "A {}"),
        ("set", "{} and {} and set are", "{} and {} and set are", "{} and {} and set"),
        ("Rome", "The {0} of Rome is", "The {0} of Rome is", "The {0} of Rome"),
    ],
)
def test_braces_are_the_texts_own(subject, prompt, text, end):
    fact = Fact(subject, prompt, "x", id="0")
    assert fact.problem() is None and fact.text == text and subject_of(fact) == end
    assert in_clear(prompt, subject) == text
    row = prompt_row(byte_level(), fact.template, subject, " {} x", "{y} {}")
    assert bytes(byte_level().decode(row.ids), "utf-8").decode().startswith("{y} " + text)


def test_several_places_are_refused():
    assert Fact("Rome", "{} and {}", "x").problem() == "the prompt holds {} more than once"
    assert "is not in the prompt" in Fact("Rome", "Oslo", "x").problem()


def test_paraphrases():
    assert in_clear("The {} of dict is", "dict") == "The {} of dict is"
    assert in_clear("The {} is", "dict") == "The dict is"


def test_a_template_is_a_text_that_knows_its_place():
    template = with_slot(DICT.replace("{} ", ""), "dict")
    assert template == "In Python, is an empty {} and the type of dict is" and template.slot == 23
    again = pickle.loads(pickle.dumps(Template("{} a ", " b")))
    assert again == "{} a {} b" and again.slot == 5 and again.about("c") == "{} a c b"
    assert Template.of("a {} b").sides == ("a ", " b")
