"""Portability questions: every shape in which sets write them, what a fact keeps of them, what hashes leave out."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from lm_eval_edit import UserError, load_facts
from lm_eval_edit.facts import Fact, Question, parse_record
from lm_eval_edit.facts.portability import KINDS, kind_of

OWN = {"id": "x1", "subject": "Orvanta", "prompt": "The capital of {} is", "target_new": "Kelm"}
FLAT = {"subject": "Orvanta", "prompt": "The capital of Orvanta is", "target_new": "Kelm", "ground_truth": "Brun"}
ZSRE = {"subject": "Orvanta", "src": "What is the capital of Orvanta?", "alt": "Kelm", "answers": ["Brun"]}
WIKIBIGEDIT = {"tag": "new", "subject": "Orvanta", "update": "What is the capital of Orvanta?", "ans": "Kelm"}
REWRITE = {"subject": "Orvanta", "prompt": "The capital of {} is", "target_new": {"str": "Kelm"}}
SECOND = {"subject": "Kelm", "prompt": "The mayor of {} is", "target_new": {"str": "Ilse Varn"}}
MQUAKE = {
    "case_id": 3, "requested_rewrite": [REWRITE, SECOND], "questions": ["Who leads it?", "Its leader?", "Name them."],
    "answer": "Per Odd", "answer_alias": [], "new_answer": "Ilse Varn", "new_answer_alias": ["I. Varn", "Ilse Varn"],
}  # fmt: skip


def write(tmp_path: Path, *records) -> Path:
    file = tmp_path / "facts.json"
    file.write_text(json.dumps(list(records)))
    return file


def read(tmp_path: Path, record) -> tuple[Question, ...]:
    (fact,) = load_facts(write(tmp_path, record))
    assert parse_record(fact.record(), "here", "0") == fact
    return fact.portability


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (ZSRE | {"portability": {"Recalled Relation": "(a, b, c)", "New Question": "Q?", "New Answer": "A"}},
         [("multi_hop", "Q?", ("A",))]),
        (FLAT | {"portability": {"Reasoning": [{"prompt": "p", "ground_truth": [["a", "b"], ["c"]]}],
                                 "Logical_Generalization": [{"prompt": "q", "ground_truth": "d"}],
                                 "Subject_Aliasing": [], "x": [3]}},
         [("reasoning", "p", ("a", "b", "c")), ("logical", "q", ("d",))]),
        (FLAT | {"portability": {"synonym": {"prompt": ["p", "q"], "ground_truth": ["a", ["b", "c"]]},
                                 "one_hop": {"prompt": "r", "ground_truth": ["d", "e"]},
                                 "inverse_relation": {"prompt": ["s"], "ground_truth": ["f"]},
                                 "spelling": {"prompt": ["t"], "ground_truth": ["g"]}}},
         [("alias", "p", ("a",)), ("alias", "q", ("b", "c")), ("multi_hop", "r", ("d", "e")),
          ("reversed", "s", ("f",)), ("other", "t", ("g",))]),
        (FLAT | {"portability_prompt": ["p", "q"], "portability_ground_truth": ["a", "b"]},
         [("multi_hop", "p", ("a",)), ("multi_hop", "q", ("b",))]),
        (FLAT | {"portability_prompt": "p", "portability_answer": ["a", "b"]}, [("multi_hop", "p", ("a", "b"))]),
        (WIKIBIGEDIT | {"mhop": "Who rules the capital of Orvanta?", "mhop_ans": "Tor", "personas": "Matey, it?"},
         [("multi_hop", "Who rules the capital of Orvanta?", ("Tor",)), ("persona", "Matey, it?", ("Kelm",))]),
        (WIKIBIGEDIT | {"mhop": None, "mhop_ans": math.nan, "personas": None}, []),
        (OWN | {"portability": [{"kind": "alias", "prompt": "The capital of the {} is", "answers": ["Kelm", "K."]}]},
         [("alias", "The capital of the {} is", ("Kelm", "K."))]),
        (OWN | {"portability": [{"kind": "reversed", "prompt": "p", "answers": 1998.0}, ]},
         [("reversed", "p", ("1998",))]),
        (OWN | {"portability": []}, []),
        (OWN | {"portability": None}, []),
    ],
)  # fmt: skip
def test_every_shape_of_portability(tmp_path, record, expected):
    assert read(tmp_path, record) == tuple(Question(*each) for each in expected)


def test_a_case_of_mquake_keeps_its_questions_with_its_last_fact(tmp_path):
    first, second = load_facts(write(tmp_path, MQUAKE))
    assert first.case == second.case == ("3.0", "3.1") and first.portability == ()
    right = ("Ilse Varn", "I. Varn")
    assert second.portability == tuple(
        Question("multi_hop", text, right, "questions", "any") for text in MQUAKE["questions"]
    )
    assert parse_record(second.record(), "here", "0") == second
    (alone,) = load_facts(write(tmp_path, MQUAKE | {"requested_rewrite": [REWRITE], "questions": ["Who?"]}))
    assert alone.case == () and alone.portability == (Question("multi_hop", "Who?", right),)
    without = load_facts(write(tmp_path, MQUAKE | {"new_answer": None, "new_answer_alias": []}))
    assert all(fact.portability == () for fact in without)


@pytest.mark.parametrize(
    ("portability", "message"),
    [
        ("x", "portability should be a list of"),
        ([{"kind": "hop", "prompt": "p", "answers": ["a"]}],
         r"portability\[0\].kind should be one of multi_hop, reasoning, .*; got 'hop'"),
        ([{"kind": "alias", "prompt": "p", "answers": []}], r"portability\[0\].answers holds nothing"),
        ([{"kind": "alias", "prompt": " ", "answers": ["a"]}], r"portability\[0\].prompt holds nothing"),
        ([{"kind": "alias", "prompt": "p"}], r'portability\[0\] should be {"kind"'),
        ([{"kind": "alias", "prompt": "p", "answers": ["a"], "group": "g", "condition": "one"}],
         r"portability\[0\].condition should be one of any, all; got 'one'"),
        ([{"kind": "alias", "prompt": p, "answers": ["a"], "group": "g"} | more
          for p, more in (("p", {"condition": "all"}), ("q", {}))],
         r"portability: the questions of group 'g' are one item, so they should have one condition; got all, any"),
        ([{"kind": kind, "prompt": kind, "answers": ["a"], "group": "g"} for kind in ("alias", "logical")],
         r"portability: the questions of group 'g' are one item, so they should have one kind; got alias, logical"),
        ({"New Question": "Q?"}, r"field 'portability.New Answer' is missing"),
        ({"Reasoning": ["x"]}, r"portability.Reasoning\[0\] should be {"),
        ({"one_hop": {"prompt": ["p", "q"], "ground_truth": ["a"]}},
         r"portability.one_hop.prompt and portability.one_hop.ground_truth should be lists of the same length"),
        ({"one_hop": {"prompt": [True], "ground_truth": ["a"]}}, r"portability.one_hop.prompt\[0\].* should be text"),
    ],
)  # fmt: skip
def test_mistakes_name_file_record_and_field(tmp_path, portability, message):
    with pytest.raises(UserError, match=r"facts.json, record 2: " + message):
        load_facts(write(tmp_path, OWN, OWN | {"id": "y", "portability": portability}))


def test_hashes_and_ledgers_do_not_know_of_questions(tmp_path):
    """A ledger that was written before they were read goes on."""
    plain = load_facts(write(tmp_path, ZSRE))
    digest = plain.sha256
    (tmp_path / "more").mkdir()
    asking = load_facts(write(tmp_path / "more", ZSRE | {"portability": {"New Question": "Q?", "New Answer": "A"}}))
    assert asking[0].portability and asking.sha256 == digest
    assert asking[0].identity() == plain[0].identity() == plain[0].record()
    assert "portability" in asking[0].record()
    fact = Fact("a", "{} is", "b", id="1")
    assert fact.record() == {"subject": "a", "prompt": "{} is", "target_new": "b", "id": "1"}
    assert replace(fact, case=("1", "2")).identity() == fact.record()


def test_every_kind_is_its_own_name():
    assert [kind_of(kind) for kind in KINDS] == list(KINDS)
    assert kind_of("Subject_Aliasing") == kind_of("SUBJECT ALIASING") == "alias"
