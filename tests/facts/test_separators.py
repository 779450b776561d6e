"""What stands between a prompt and its object."""

from __future__ import annotations

import pytest

from lm_eval_edit.facts.fact import Fact, Probe, read_facts
from lm_eval_edit.facts.separators import continuing, separator
from lm_eval_edit.tasklib.editing import documents

SPACE, NOTHING = " ", ""


@pytest.mark.parametrize(
    ("before", "after", "between"),
    [
        ("The city is", "Rome", SPACE),
        ("The city is ", "Rome", NOTHING),
        ("Q: where?\nA:\n", "Rome", NOTHING),
        ("Q: where?\tA:\t", "Rome", NOTHING),
        ("the city\u3000", "Rome", NOTHING),
        # brackets
        ("Norway (", "Oslo", NOTHING),
        ("Norway [", "Oslo", NOTHING),
        ("Norway (Oslo)", "is", SPACE),
        ("¿", "Roma", NOTHING),
        # straight quotation marks open only where no word stands before them and none is open
        ('is called "', "Oslo", NOTHING),
        ('("', "Oslo", NOTHING),
        ('is called "Oslo"', "too", SPACE),
        ('is called "Oslo "', "too", SPACE),
        ('"A" and "B" and "', "C", NOTHING),
        ("don't say 'yes'", "no", SPACE),
        ("don't say '", "no", NOTHING),
        ("it is the dogs'", "own", SPACE),
        ('5 feet 3"', "tall", SPACE),
        # typographic ones, each language's
        ("he said “", "Oslo", NOTHING),
        ("he said “Oslo”", "too", SPACE),
        ("it is the dogs’", "own", SPACE),
        ("er sagt „", "Oslo", NOTHING),
        ("er sagt „Oslo“", "auch", SPACE),
        ("il dit «", "Oslo", NOTHING),
        ("il dit «Oslo»", "aussi", SPACE),
        ("han siger »", "Oslo", NOTHING),
        ("他说“", "巴黎", NOTHING),
        # scripts without spaces
        ("法国的首都是", "巴黎", NOTHING),
        ("法国的首都是", "Paris", NOTHING),
        ("法国的首都:", "巴黎", NOTHING),
        ("法国的首都：", "Paris", NOTHING),
        ("成立于1998", "年", NOTHING),
        ("日本の首都は", "東京", NOTHING),
        ("日本の首都は、", "東京", NOTHING),
        ("サーバー", "です", NOTHING),
        ("เมืองหลวงคือ", "กรุงเทพ", NOTHING),
        ("ເມືອງຫຼວງແມ່ນ", "ວຽງຈັນ", NOTHING),
        ("រាជធានីគឺ", "ភ្នំពេញ", NOTHING),
        ("မြို့တော်မှာ", "နေပြည်တော်", NOTHING),
        ("The capital of China is", "北京", SPACE),
        # scripts with spaces
        ("프랑스의 수도는", "파리", SPACE),
        ("عاصمة فرنسا هي", "باريس", SPACE),
        ("राजधानी है", "दिल्ली", SPACE),
        ("Столица —", "Париж", SPACE),
        ("I like 🍕", "more", SPACE),
        ("in 1998", "more", SPACE),
        # marks that lean on what follows
        ("The price of gold is $", "22.50", NOTHING),
        ("It costs US$", "5", NOTHING),
        ("The euro costs €", "82", NOTHING),
        ("It costs 5 €", "more", SPACE),
        ("It costs 5€", "more", SPACE),
        ("The issue is #", "1", NOTHING),
        ("It is written in C#", "mostly", SPACE),
        ("The handle is @", "oslo", NOTHING),
        ("Their address is nils@", "oslo.no", NOTHING),
        ("The Franco-", "Prussian", NOTHING),
        ("The years 1990–", "1995", NOTHING),
        ("Einstein—", "the physicist", NOTHING),
        ("Einstein —", "the physicist", SPACE),
        ("- Oslo\n-", "Rome", SPACE),
        ("Linux and/", "or", NOTHING),
        ("It is at https://", "oslo.no", NOTHING),
        ("C:\\", "Users", NOTHING),
        ("lang=", "en", NOTHING),
        ("lang =", "en", SPACE),
        ("my_", "name", NOTHING),
        ("The capital of l’", "Italie", NOTHING),
        ("La capitale dell'", "Italia", NOTHING),
        ("the Beatles'", "songs", SPACE),
        ("The bold word is **", "Oslo", NOTHING),
        ("The word **Oslo**", "is", SPACE),
        ("The slanted word is _", "Oslo", NOTHING),
        ("2 *", "3", SPACE),
        ("C++", "is", SPACE),
        ("about ~", "100", NOTHING),
        ("<b>", "Oslo", NOTHING),
        ("<b>Oslo</b>", "is", SPACE),
        # marks that lean on what stands before
        ("Nils Albrecht", ", who", NOTHING),
        ("Nils Albrecht", ".", NOTHING),
        ("Nils (a man", ") is", NOTHING),
        ("Nils", "'s mother", NOTHING),
        ("Nils", "’s", NOTHING),
        ("Nils", "'Oslo'", SPACE),
        ("It grew by 5", "%", NOTHING),
        ("Oslo", "-based", NOTHING),
        ("It is", "-5", SPACE),
        ("It was made with", ".NET", SPACE),
        ("They speak", "!Kung", SPACE),
        ("It is", "(mostly)", SPACE),
        ("I said", '"Oslo"', SPACE),
    ],
)
def test_it_is_what_a_writer_would_put_there(before, after, between):
    assert separator(before, after) == between
    assert continuing(before, after) == between + after


@pytest.mark.parametrize(
    ("before", "text", "whole"),
    [
        ("The city is", " Oslo", " Oslo"),
        ("The city is", "  Oslo", " Oslo"),
        ("The city is ", " Oslo", "Oslo"),  # never two
        ('The city is called "', " Oslo", "Oslo"),
        ("The city (", " Oslo", "Oslo"),
        ("法国的首都是", " Paris", " Paris"),
        ("法国的首都是", "\u3000巴黎", "\u3000巴黎"),
        ("The Franco-", " and", " and"),
        ("Q: where?\nA:", "\nOslo", "\nOslo"),
        ("Q: where?\n", "\nOslo", "\nOslo"),
        ("The city is\t", "\tOslo", "\tOslo"),
        ("The city is", "\u00a0Oslo", "\u00a0Oslo"),
    ],
)
def test_white_space_of_the_objects_own_stays(before, text, whole):
    assert continuing(before, text) == whole
    assert continuing(before, text, "-") == "-" + text.strip()
    doc = documents.efficacy(Fact("x", before + "{}", text, subject_at=len(before)), 0)[0]
    assert documents.in_context(doc, "target", "Yes. " + doc["prompt"]) == doc["target"]


def test_a_fact_may_state_its_own():
    record = {
        "subject": "Nils",
        "prompt": "{} is",
        "target_new": " Oslo",
        "separator": "",
        "paraphrases": ["{}, he is"],
    }
    (fact,) = read_facts([(1, record)], "x")
    assert fact.target == "Oslo" and fact.record()["separator"] == ""
    assert documents.generalization(fact, 0)[0]["target"] == "Oslo"
    (stated,) = read_facts([(1, record | {"separator": "-"})], "x")
    assert stated.target == "-Oslo"
    with pytest.raises(ValueError, match="separator should be text"):
        read_facts([(1, record | {"separator": 3})], "x")


def test_every_prompt_of_a_fact_goes_by_the_same_rule():
    fact = Fact(
        "Nils", "{} is", "Oslo", "Rome", id="7", paraphrases=("{} is called “", "{}: "),
        locality=(Probe("Greta (", " Rome"), Probe("Greta\n", "Rome")),
    )  # fmt: skip
    assert [(d["target"], d["other"]) for d in documents.efficacy(fact, 0)] == [(" Oslo", " Rome")]
    assert [(d["target"], d["other"]) for d in documents.generalization(fact, 0)] == [("Oslo", "Rome")] * 2
    assert [(d["target"], d["other"]) for d in documents.locality(fact, 0)] == [("Rome", "Oslo")] * 2
    (doc,) = documents.counterfact(fact, 0)
    asked = [doc["prompt"], *doc["paraphrases"], *doc["neighbourhood"]]
    assert [documents.in_context(doc, "target", prompt) for prompt in asked] == [" Oslo", *["Oslo"] * 4]


def test_behind_a_chat_template_nothing_is_put():
    (doc,) = documents.efficacy(Fact("Nils", "{} is", "Oslo", "Rome", id="7"), 0)
    assert documents.in_context(doc, "target", "Nils is<assistant>", chat=True) == "Oslo"
    assert documents.in_context(doc, "target", "Be brief. Nils is") == " Oslo"
