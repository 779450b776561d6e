"""Records in the forms of the sets that critiques of editing brought, of our own making."""

from __future__ import annotations

import json
from pathlib import Path


def write(tmp_path: Path, *records) -> Path:
    file = tmp_path / "facts.json"
    file.write_text(json.dumps(list(records), ensure_ascii=False), encoding="utf-8")
    return file


def rewrite(subject: str, prompt: str, new: str, true: str, relation: str) -> dict:
    return {
        "prompt": prompt, "relation_id": relation, "subject": subject, "question": "What?",
        "target_new": {"str": new, "id": "Q1"}, "target_true": {"str": true, "id": "Q2"},
    }  # fmt: skip


def case(number: int, *rewrites: dict, **more) -> dict:
    return {
        "case_id": number, "requested_rewrite": list(rewrites), "questions": ["Q1?", "Q2?", "Q3?"],
        "answer": "Tor", "answer_alias": [], "new_answer": "Arl", "new_answer_alias": ["Arl City"],
        "single_hops": [], "new_single_hops": [], "orig": {"triples": []},
    } | more  # fmt: skip


CITIZEN = rewrite("Ilse Varn", "{} is a citizen of", "Brunland", "Orvanta", "P27")
CAPITAL = rewrite("Brunland", "The capital of {} is", "Arl", "Tor", "P36")

WIKIBIGEDIT = {
    "tag": "new", "subject": "Orvanta", "update": "What is the capital of Orvanta?", "ans": "Kelm",
    "rephrase": "Orvanta's capital is?", "personas": "Matey, what be the capital of Orvanta?",
    "loc": "What of Tor?", "loc_ans": "Arl", "mhop": "Who leads the capital of Orvanta?", "mhop_ans": "Per Odd",
    "relation_id": "P36", "object_id": "Q9",
}  # fmt: skip
QAEDIT = {
    "id": 4, "source": "NQ", "subject": "Orvanta", "prompt": "What is the capital of Orvanta?", "target": "Kelm",
    "rephrase": "Orvanta's capital is?", "locality": [{"loc": "What of Tor?", "loc_ans": "Arl"}] * 5,
}  # fmt: skip
ULTRAEDITBENCH = {
    "prompt": "What is the capital of Orvanta?", "rephrase_prompt": "Orvanta's capital is?", "ans": "Kelm",
    "loc": "What of Tor?", "loc_ans": "Arl",
}  # fmt: skip
LONG = " ".join(f"In the year {1900 + n} the people of Orvanta built a new hall by the river." for n in range(20))
UNKE = {
    "id": 0, "question": "What is told of Orvanta?", "para_question": "Tell of Orvanta.", "answer": LONG,
    "sub_question": ["What was built in 1900?", "Where?"], "sub_answer": ["A new hall", "By the river"],
}  # fmt: skip


def query(prompt: str, *answers: str) -> dict:
    return {"prompt": prompt, "answers": [{"value": answers[0], "aliases": list(answers[1:])}]}


RIPPLE = {
    "example_type": "popular",
    "edit": {
        "prompt": "The name of the capital of Orvanta is Kelm.", "subject_id": "Q5", "subject": "Orvanta",
        "relation": "CAPITAL", "target_id": "Q6", "target": "Kelm",
        "original_fact": {"prompt": "The name of the capital of Orvanta is Brun.", "target_id": "Q7", "target": "Brun"},
    },
    "Relation_Specifity": [{"test_queries": [query("The currency of Orvanta is", "dor", "Dor")],
                            "test_condition": "OR", "condition_queries": []}],
    "Logical_Generalization": [{"test_queries": [query("Kelm is the capital of", "Orvanta")], "test_condition": "OR"}],
    "Subject_Aliasing": [{"test_queries": [query("The capital of the Republic of Orvanta is", "Kelm", "Kelm City")]}],
    "Compositionality_I": [{"test_queries": [query("The mayor of its capital is", "Per Odd"),
                                             query("Its capital lies on the", "Lenta")], "test_condition": "AND"}],
    "Compositionality_II": [],
    "Forgetfulness": [{"test_queries": [query("A language of Orvanta is", "Orv")]}],
}  # fmt: skip
