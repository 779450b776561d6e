"""The texts of `edithurt_probing` to the byte, what is taken from an answer, the documents of facts of all sorts."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lm_eval_edit import ConfigurationError
from lm_eval_edit.facts.fact import Fact, Question
from lm_eval_edit.tasklib.editing import documents as all_documents
from lm_eval_edit.tasklib.editing.probing import documents, frames
from tests.support.chat_models import SHAPES, UNUSABLE, chat_tokenizer

NILS = Fact("Nils", "The mother tongue of {} is", "Zulu", "Danish", id="7", question="What does {} speak?")
GRETA = Fact("Greta", "{} lives in", " Oslo", " Rome", id="8")
ASKED = Fact("Nils", "Which family does {} belong to?", "Lamiinae", "Lecanorales", id="9")
CHINESE = Fact("安倍晋三", "{}的母语是", "法语", "日语", id="10", question="{}的母语是什么？")
ARABIC = Fact("مارك", "اللغة الأم لـ {} هي", "الفرنسية", "الإنجليزية", id="11", question="ما لغة {}؟")
FACTS = (NILS, GRETA, ASKED, CHINESE, ARABIC)


# ------------------------------------------------------------------------------------------------------------ negation


@pytest.mark.parametrize(
    ("fact", "texts"),
    [
        (NILS, ["It is not true that The mother tongue of Nils is| Zulu", "The mother tongue of Nils is not| Zulu"]),
        (GRETA, ["It is not true that Greta lives in| Oslo"]),
        (
            ASKED,
            [
                'It is not true that the answer to the question "Which family does Nils belong to?" is| Lamiinae',
                'The answer to the question "Which family does Nils belong to?" is not| Lamiinae',
            ],
        ),
        (CHINESE, ["It is not true that 安倍晋三的母语是|法语"]),
        (ARABIC, ["It is not true that اللغة الأم لـ مارك هي| الفرنسية"]),
        (
            Fact("x", "{} がどこですか？", "東京", "京都"),
            [
                'It is not true that the answer to the question "x がどこですか？" is| 東京',
                'The answer to the question "x がどこですか？" is not| 東京',
            ],
        ),
        (
            Fact("x", "Question: Who is {}?\nAnswer:", "a", "b"),
            [
                'It is not true that the answer to the question "Who is x?" is| a',
                'The answer to the question "Who is x?" is not| a',
            ],
        ),
        (
            Fact("x", "Who is {}? A: ", "a", "b"),
            [
                'It is not true that the answer to the question "Who is x?" is| a',
                'The answer to the question "Who is x?" is not| a',
            ],
        ),
        (
            Fact("x", "Who is {}? It is", "a", "b"),
            ["It is not true that Who is x? It is| a", "Who is x? It is not| a"],
        ),
        # "is" alone is negated so, not the end of another word; white space at the prompt's end is its own
        (Fact("x", "The capital of {}: Paris", "a", "b"), ["It is not true that The capital of x: Paris| a"]),
        (Fact("x", "{} was ", "a", "b"), ["It is not true that x was |a", "x was not| a"]),
        # what a record states of its separator is about its own prompt
        (Fact("x", "{} is", "a", "b", separator=""), ["It is not true that x is|a", "x is not| a"]),
    ],
)
def test_negated_prompts(fact, texts):
    docs = documents.negation(fact, 3)
    assert [f"{doc['prompt']}|{doc['target']}" for doc in docs] == texts
    assert all((doc["plain"], doc["plain_target"]) == (fact.text, fact.target) for doc in docs)
    assert [doc["frame"] for doc in docs] == ["that", "not"][: len(docs)]
    assert all((doc["fact_id"], doc["edit"]) == (fact.id, 3) for doc in docs)


# ---------------------------------------------------------------------------------------------------------- fact check


def test_the_eight_questions_of_a_fact():
    found = [
        (check.about, check.form, check.order, check.prompt, check.right, check.wrong)
        for check in frames.checks(NILS, "Danish")
    ]
    new, old = "Statement: The mother tongue of Nils is Zulu.\n", "Statement: The mother tongue of Nils is Danish.\n"
    words, sdrow = "Is this statement True or False?\nAnswer:", "Is this statement False or True?\nAnswer:"
    letters = "Is this statement true?\nA. True\nB. False\nAnswer:"
    srettel = "Is this statement true?\nA. False\nB. True\nAnswer:"
    assert found == [
        ("new", "words", "True", new + words, "True", "False"),
        ("new", "words", "False", new + sdrow, "True", "False"),
        ("new", "letters", "True", new + letters, "A", "B"),
        ("new", "letters", "False", new + srettel, "B", "A"),
        ("old", "words", "True", old + words, "False", "True"),
        ("old", "words", "False", old + sdrow, "False", "True"),
        ("old", "letters", "True", old + letters, "B", "A"),
        ("old", "letters", "False", old + srettel, "A", "B"),
    ]


@pytest.mark.parametrize(
    ("fact", "claim"),
    [
        (GRETA, "Statement: Greta lives in Oslo.\nIs this statement True or False?\nAnswer:"),
        (
            ASKED,
            "Question: Which family does Nils belong to?\nProposed answer: Lamiinae\nIs this answer True or False?\n"
            "Answer:",
        ),
        (
            Fact("x", "Q: Who is {}?\nA:", "a", "b"),
            "Question: Who is x?\nProposed answer: a\nIs this answer True or False?\nAnswer:",
        ),
        (CHINESE, "Statement: 安倍晋三的母语是法语。\nIs this statement True or False?\nAnswer:"),
        (ARABIC, "Statement: اللغة الأم لـ مارك هي الفرنسية.\nIs this statement True or False?\nAnswer:"),
        (
            Fact("x", "{} lives in", "Washington, D.C.", "b"),
            "Statement: x lives in Washington, D.C.\nIs this statement True or False?\nAnswer:",
        ),
        (Fact("x", '{} said "', 'yes!"', "b"), 'Statement: x said "yes!"\nIs this statement True or False?\nAnswer:'),
        (
            Fact("x", "{} की भाषा है", "हिन्दी", "b"),
            "Statement: x की भाषा है हिन्दी।\nIs this statement True or False?\nAnswer:",
        ),
    ],
)
def test_statements(fact, claim):
    assert next(frames.checks(fact, fact.target_true)).prompt == claim
    (doc,) = documents.factcheck(fact, 0)
    assert (doc["prompt"], doc["target"], doc["other"]) == (claim, " True", " False") and len(doc["checks"]) == 8


# -------------------------------------------------------------------------------------------------------- what is said


@pytest.mark.parametrize(
    ("fact", "prompt", "form", "target"),
    [
        (NILS, "What does Nils speak?", "question", " Zulu"),
        (GRETA, "Greta lives in", "prompt", " Oslo"),
        (ASKED, "Which family does Nils belong to?", "question", " Lamiinae"),
        (CHINESE, "安倍晋三的母语是什么？", "question", "法语"),
        (ARABIC, "ما لغة مارك؟", "question", " الفرنسية"),
        (Fact("x", "{} is", "a", question="  "), "x is", "prompt", " a"),
        (Fact("x", "{} is", "a", question="Who is x?"), "Who is x?", "question", " a"),
    ],
)
def test_questions(fact, prompt, form, target):
    (doc,) = documents.wild(fact, 0)
    assert (doc["prompt"], doc["form"], doc["target"]) == (prompt, form, target)
    assert doc["answers"] == [fact.target_new.strip()]
    assert doc["old"] == ([fact.target_true.strip()] if fact.target_true else [])


def test_reversed_questions():
    questions = (
        Question("reversed", "Who speaks Zulu?", ("Nils", " ")),
        Question("multi_hop", "Where do they speak what Nils speaks?", ("Africa",)),
        Question("reversed", "{} is whose tongue?", ("nobody",)),
        Question("reversed", "Who?", (" ",)),
    )
    docs = documents.reversed_relation(Fact("Nils", "{} speaks", "Zulu", portability=questions), 1)
    assert [(doc["prompt"], doc["answers"], doc["target"]) for doc in docs] == [
        ("Who speaks Zulu?", ["Nils"], " Nils"),
        ("Nils is whose tongue?", ["nobody"], " nobody"),
    ]
    assert documents.reversed_relation(NILS, 1) == []


WORDS = st.text(st.characters(categories=("L", "M", "N", "P", "S", "Zs")), min_size=1, max_size=20).filter(str.strip)


@settings(max_examples=200)
@given(
    WORDS.filter(lambda text: "{" not in text),
    WORDS,
    WORDS,
    st.sampled_from(["The {} is", "Who is {}?", "{}的", "{} was "]),
)
def test_properties_of_documents(subject, new, true, prompt):
    """Whatever the characters, the fact's own words stand in every text, and both objects are treated alike."""
    assume(subject.strip() not in prompt.replace("{}", ""))  # refused: which of the two is the place
    fact = Fact(subject, prompt, new, true, id="1")
    for doc in documents.negation(fact, 0):
        assert fact.text.strip() in doc["prompt"] and doc["target"].strip() == new.strip()
        assert doc["prompt"] != doc["plain"]
        assert (doc["other"] is None) == (new.strip() == true.strip())
    for doc in documents.factcheck(fact, 0):
        about = {name: [c for c in doc["checks"] if c["about"] == name] for name in ("new", "old")}
        assert len(about["new"]) == len(about["old"]) == 4
        for check in doc["checks"]:
            assert {check["right"], check["wrong"]} in ({"True", "False"}, {"A", "B"})
            assert (new if check["about"] == "new" else true).strip() in check["prompt"]
        # the same question of another statement has the opposite answer
        assert [c["right"] for c in about["new"]] == [c["wrong"] for c in about["old"]]


# ------------------------------------------------------------------------------------------------------------- loading


def options_of(tmp_path, records, **more):
    file = tmp_path / "facts.json"
    file.write_text(json.dumps(records, ensure_ascii=False))
    return {"edit_dataset": str(file), "n_edits": len(records), "editor": "none", **more}


def test_facts_of_any_language_go_through_a_file(tmp_path):
    options = options_of(tmp_path, [fact.record() for fact in FACTS], edit_seed=None)
    for task in ("negation", "factcheck", "wild"):
        docs, known = all_documents.load(task, options)
        assert docs == [doc for edit, fact in enumerate(FACTS) for doc in documents.KINDS[task][0](fact, edit)]
        assert known["facts_without"] == 0


def test_what_facts_lack_is_said_before_anything_loads(tmp_path):
    records = [{"id": str(i), "subject": "Abo", "prompt": "{} is", "target_new": "b"} for i in range(2)]
    with pytest.raises(ConfigurationError) as caught:
        all_documents.check_tasks(["edithurt_probing", "edithurt_reversed"], options_of(tmp_path, records))
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["edithurt_factcheck", "edithurt_reversed"]
    assert "has a question of the inverse relation (portability of kind reversed)" in caught.value.problems[1]
    all_documents.check_tasks(["edithurt_negation", "edithurt_wild"], options_of(tmp_path, records))
    all_documents.check_tasks(["edithurt_probing"], {"n_edits": 2})


def test_a_tokenizer_without_a_chat_template_is_told_before_anything_loads(tmp_path):
    from transformers import AutoTokenizer

    from lm_eval_edit.demo import CHECKPOINT

    with pytest.raises(ConfigurationError, match=r"edithurt_wild_chat: .* has no chat template; ask for edithurt_wild"):
        all_documents.check_tasks(["edithurt_wild_chat"], {"n_edits": 2})
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "chat")
    all_documents.check_tasks(["edithurt_wild_chat"], {"n_edits": 2, "tokenizer": str(tmp_path / "chat")})
    unknown = {"n_edits": 2, "model": "an-api", "edit_dataset": "demo"}
    all_documents.check_tasks(["edithurt_wild_chat"], unknown)  # nobody knows before it is asked


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_template_that_cannot_show_the_question_is_told_before_anything_loads(tmp_path, name):
    template, told = UNUSABLE[name]
    chat_tokenizer(template).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=f"edithurt_wild_chat: .*{told}.*; ask for edithurt_wild"):
        all_documents.check_tasks(["edithurt_wild_chat"], {"n_edits": 2, "tokenizer": str(tmp_path)})


@pytest.mark.parametrize("shape", SHAPES)
def test_a_template_that_shows_the_question_is_fine(tmp_path, shape):
    chat_tokenizer(SHAPES[shape][0]).save_pretrained(tmp_path)
    all_documents.check_tasks(["edithurt_wild_chat"], {"n_edits": 2, "tokenizer": str(tmp_path)})
