"""Subjects in another Unicode form, texts that are missing, and records of any shape."""

from __future__ import annotations

import json
import math
import unicodedata

import pytest

from lm_eval_edit import load_facts
from tests.support.junk_records import facts_or_error, junk_records
from tests.support.record_forms import COUNTERFACT, FLAT, MQUAKE, OWN, QAEDIT, WIKIBIGEDIT, WIKIBIO, ZSRE, write


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_a_subject_in_another_unicode_form_is_found_and_the_prompt_stays_as_it_is(tmp_path, forms):
    subject, prompt = (
        unicodedata.normalize(form, text) for form, text in zip(forms, ("José Prà", "Of José Prà it"), strict=True)
    )
    (fact,) = load_facts(write(tmp_path, FLAT | {"subject": subject, "prompt": prompt}))
    assert fact.text == prompt == fact.template.replace("{}", fact.subject)
    assert unicodedata.normalize("NFC", fact.subject) == "José Prà"


def test_a_subject_in_other_case_is_skipped_and_told(tmp_path):
    facts = load_facts(write(tmp_path, FLAT | {"subject": "ORVANTA"}, FLAT | {"subject": "Tor"}))
    first, second = (skipped.reason for skipped in facts.skipped)
    assert first.startswith("the subject 'ORVANTA' is not in the prompt") and first.endswith(
        "'Orvanta' differs from it in upper and lower case only"
    )
    assert second == "the subject 'Tor' is not in the prompt 'The capital of Orvanta is'"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (OWN | {"subject": None}, "the subject is empty"),
        (OWN | {"prompt": math.nan}, "the prompt is empty"),
        (COUNTERFACT | {"requested_rewrite": None}, "the subject is empty"),
        ({"subject": "a", "src": None, "alt": None}, "the target is empty"),
    ],
)
def test_other_missing_texts_skip_the_record_too(tmp_path, record, reason):
    (skipped,) = load_facts(write(tmp_path, record)).skipped
    assert skipped.reason.startswith(reason)


def test_whatever_a_record_holds_the_answer_is_facts_or_a_user_error():
    good = (OWN, FLAT, ZSRE, COUNTERFACT, MQUAKE, WIKIBIGEDIT, QAEDIT, WIKIBIO)
    more = (
        "portability", "portability_prompt", "questions", "new_answer", "mhop_ans", "locality_prompt",
        "locality_ground_truth", "rephrase_prompt", "paraphrases", "target_true", "question",
    )  # fmt: skip
    inner = ("prompt", "ground_truth", "answer", "loc", "loc_ans", "str", "subject", "target_new", "x")
    read = 0
    for record in junk_records(5, 4000, good, more, inner):
        for fact in facts_or_error(record):
            read += 1
            json.dumps(fact.record(), ensure_ascii=False).encode()
            if fact.problem() is None:
                assert fact.target_new.strip() and fact.text.strip()
                assert not fact.subject.strip() or fact.template.count("{}") == 1
                assert fact.subject.strip() == "" or fact.subject in fact.text
    assert read > 1000
