"""What records hold for a text, every form of the field, and errors that name the field."""

from __future__ import annotations

import json
import math

import pytest

from lm_eval_edit import ConfigurationError, UserError, load_facts
from lm_eval_edit.facts.fact import Probe, parse_record, parse_records
from lm_eval_edit.facts.fields import Field
from tests.support.record_forms import (
    COUNTERFACT,
    FLAT,
    MQUAKE,
    OWN,
    QAEDIT,
    REWRITE,
    WIKIBIGEDIT,
    WIKIBIO,
    ZSRE,
    write,
)

# -------------------------------------------------------------------------------------------------- what a text may be


@pytest.mark.parametrize("nothing", [None, math.nan, float("-nan")])
@pytest.mark.parametrize(
    "record",
    [
        OWN | {"target_new": None, "id": 0},
        FLAT | {"target_new": None},
        FLAT | {"target_new": [None]},
        ZSRE | {"alt": None},
        COUNTERFACT | {"requested_rewrite": REWRITE | {"target_new": None}},
        COUNTERFACT | {"requested_rewrite": REWRITE | {"target_new": {"str": None}}},
        MQUAKE | {"requested_rewrite": [REWRITE | {"target_new": {"str": None}}]},
        WIKIBIGEDIT | {"ans": None},
        QAEDIT | {"target": None},
    ],
)
def test_a_missing_target_skips_one_record_in_every_form(tmp_path, record, nothing):
    written = json.dumps([record, OWN]).replace("null", json.dumps(nothing))
    (tmp_path / "facts.json").write_text(written)
    facts = load_facts(tmp_path / "facts.json")
    assert [fact.id for fact in facts] == ["x1"]
    assert [(skipped.reason, skipped.record) for skipped in facts.skipped] == [("the target is empty", 1)]


def test_nan_is_missing_wherever_it_stands(tmp_path):
    nan = math.nan
    flat = FLAT | {"case_id": nan, "ground_truth": nan, "rephrase_prompt": [nan, "And Orvanta?"], "rephrase": nan}
    flat |= {"locality_prompt": ["a", nan, "c"], "locality_ground_truth": [["b", nan], "x", nan], "portability": nan}
    own = OWN | {"id": nan, "target_true": nan, "prediction": nan, "question": nan, "relation": nan, "paraphrases": nan}
    first, second, third, fourth = load_facts(
        write(tmp_path, flat, own | {"locality": nan}, ZSRE | {"answers": nan}, OWN)
    )
    assert first.target_true is None and first.paraphrases == ("And Orvanta?",) and first.locality == (Probe("a", "b"),)
    assert second.record() == {**{k: v for k, v in OWN.items() if k != "id"}, "id": "1"}
    assert (first.id, third.id, third.target_true, fourth.id) == ("0", "2", None, "x1")
    assert "nan" not in json.dumps([fact.record() for fact in (first, second, third, fourth)]).lower()


def test_the_word_nan_is_a_word(tmp_path):
    (fact,) = load_facts(write(tmp_path, OWN | {"target_new": "nan", "target_true": "NaN"}))
    assert (fact.target_new, fact.target_true) == ("nan", "NaN")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1998, "1998"),
        (1998.0, "1998"),
        (1998.5, "1998.5"),
        (-0.0, "0"),
        (1e3, "1000"),
        (9007199254740993, "9007199254740993"),
        (10**30, str(10**30)),
        (1e22, "1e+22"),
    ],
)
def test_numbers_are_their_digits(tmp_path, number, text):
    record = FLAT | {"target_new": number, "ground_truth": [number], "case_id": number, "rephrase": number}
    (fact,) = load_facts(write(tmp_path, record | {"locality_prompt": "p", "locality_ground_truth": number}))
    assert (fact.target_new, fact.target_true, fact.id, fact.paraphrases) == (text, text, text, (text,))
    assert fact.locality == (Probe("p", text),)


@pytest.mark.parametrize(
    ("record", "field", "got"),
    [
        (OWN | {"target_new": math.inf}, "target_new", "the number inf"),
        (ZSRE | {"answers": [-math.inf]}, "answers[0]", "the number -inf"),
        (FLAT | {"rephrase": ["x", True]}, "rephrase[1]", "True"),
        (OWN | {"id": False}, "id", "False"),
        (OWN | {"id": ["a"]}, "id", "['a']"),
        (FLAT | {"ground_truth": {"a": 1}}, "ground_truth", "{'a': 1}"),
        (ZSRE | {"alt": ["Kelm"]}, "alt", "['Kelm']"),
        (COUNTERFACT | {"requested_rewrite": REWRITE | {"target_new": {"str": ["Kelm"]}}},
         "requested_rewrite.target_new.str", "['Kelm']"),
        (COUNTERFACT | {"requested_rewrite": REWRITE | {"target_new": "Kelm"}},
         "requested_rewrite.target_new", "'Kelm'"),
        (COUNTERFACT | {"requested_rewrite": "Kelm"}, "requested_rewrite", "'Kelm'"),
        (COUNTERFACT | {"neighborhood_prompts": [{"a": "b"}]}, "neighborhood_prompts[0]", "{'a': 'b'}"),
        (MQUAKE | {"requested_rewrite": [REWRITE, REWRITE | {"subject": 1.5, "prompt": {}}]},
         "requested_rewrite[1].prompt", "{}"),
        (MQUAKE | {"requested_rewrite": [REWRITE, 3]}, "requested_rewrite[1]", "3"),
        (FLAT | {"locality": {"neighborhood": "x"}}, "locality.neighborhood", "'x'"),
        (FLAT | {"locality": {"neighborhood": {"prompt": ["a"], "ground_truth": [True]}}},
         "locality.neighborhood.ground_truth[0]", "True"),
        (OWN | {"locality": [{"prompt": "a", "answer": {}}]}, "locality[0].answer", "{}"),
    ],
)  # fmt: skip
def test_errors_name_file_record_and_field(tmp_path, record, field, got):
    with pytest.raises(UserError) as error:
        load_facts(write(tmp_path, OWN | {"id": "first"}, record))
    message = str(error.value)
    assert "facts.json, record 2: " + field in message and f"got {got}" in message and "problems" not in message


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("A\ud800", r"lone surrogate \(\\ud800 as character 1\)"),
        ("\udc00A", "lone surrogate"),
        ("\ude00\ud83d", "lone surrogate"),
        ("A\0", r"control character \(\\u0000 as character 1\)"),
        ("\x1b[2J", r"control character \(\\u001b"),
        ("A\x08b", "control character"),
        ("A\x7f", "control character"),
    ],
)
@pytest.mark.parametrize(
    ("record", "field"),
    [
        (OWN, "id"), (OWN, "subject"), (OWN, "prompt"), (OWN, "target_new"), (OWN, "target_true"), (OWN, "question"),
        (OWN, "paraphrases"), (ZSRE, "src"), (ZSRE, "alt"), (ZSRE, "pred"), (WIKIBIGEDIT, "ans"), (QAEDIT, "target"),
    ],
)  # fmt: skip
def test_texts_no_tokenizer_reads_are_one_problem_with_record_and_field(tmp_path, record, field, text, what):
    with pytest.raises(UserError, match=rf"facts.json, record 1: {field} holds a {what}") as error:
        load_facts(write(tmp_path, record | {field: text}))
    str(error.value).encode()  # can be printed
    assert not any(character < " " and character != "\n" for character in str(error.value))


def test_tabs_line_breaks_and_whole_characters_are_fine(tmp_path):
    record = OWN | {"subject": "A\tb", "prompt": "Q: {}?\r\nA:\n", "target_new": "\U0001f600\n", "target_true": "\x96"}
    (fact,) = load_facts(write(tmp_path, record))
    assert (fact.subject, fact.prompt, fact.target_new) == ("A\tb", "Q: {}?\r\nA:\n", "\U0001f600\n")
    with pytest.raises(UserError, match="id should be in one line, without control characters"):
        load_facts(write(tmp_path, OWN | {"id": "a\nb"}))


def test_what_is_not_read_is_not_judged(tmp_path):
    extra = {"score": math.inf, "portability": {"a": ["\ud800", True]}, "note": [[[{}]]]}
    assert len(load_facts(write(tmp_path, FLAT | extra))) == 1


def test_all_problems_of_a_file_are_told_at_once(tmp_path):
    records = [OWN | {"id": str(i), "target_new": ["x"], "subject": True} for i in range(3)]
    with pytest.raises(ConfigurationError) as error:
        load_facts(write(tmp_path, *records))
    assert len(error.value.problems) == 6 and "record 3: target_new should be text; got ['x']" in str(error.value)
    records = [OWN | {"id": str(i), "target_new": {}} for i in range(47)]
    with pytest.raises(ConfigurationError) as error:
        load_facts(write(tmp_path, *records))
    assert len(error.value.problems) == 11 and error.value.problems[-1].endswith("facts.json: and 37 more problems")


def test_lists_in_lists_without_end_are_a_problem_not_a_crash():
    deep = "x"
    for _ in range(900):
        deep = [deep]
    with pytest.raises(UserError, match="rephrase is nested deeper than 8 lists"):
        parse_record(FLAT | {"rephrase": deep}, "here", "0")
    categories = {"prompt": "p", "answer": "a"}
    for _ in range(900):
        categories = {"a": categories}
    with pytest.raises(UserError, match=r"here: locality.a should be {"):
        parse_record(FLAT | {"locality": categories}, "here", "0")
    problem = Field({"a": deep})
    assert problem["a"].text() is None and len(next(iter(problem.problems))) < 100


# ------------------------------------------------------------------------------------------------------------ the forms


def test_each_rewrite_of_mquake_is_a_fact(tmp_path):
    first, second = load_facts(write(tmp_path, MQUAKE))
    assert (first.id, first.subject, first.target_new, first.target_true, first.relation) == (
        "3.0", "Orvanta", "Kelm", "Brun", "P36",
    )  # fmt: skip
    assert (second.id, second.target_true, second.question) == ("3.1", None, "Where is Brunland?")
    (alone,) = load_facts(write(tmp_path, MQUAKE | {"case_id": None, "requested_rewrite": [REWRITE]}))
    assert alone.id == "0.0"
    with pytest.raises(UserError, match=r"record 1: field 'requested_rewrite\[1\].prompt' is missing"):
        load_facts(write(tmp_path, MQUAKE | {"requested_rewrite": [REWRITE, {"subject": "a", "target_new": {}}]}))
    with pytest.raises(UserError, match="requested_rewrite is an empty list"):
        load_facts(write(tmp_path, MQUAKE | {"requested_rewrite": []}))
    with pytest.raises(UserError, match="here: holds 2 facts; one was wanted"):
        parse_record(MQUAKE, "here", "0")
    assert [fact.id for fact in parse_records(MQUAKE, "here", "0")] == ["3.0", "3.1"]


def test_wikibigedit_qaedit_and_wikibio(tmp_path):
    wiki, qa, bio = load_facts(write(tmp_path, WIKIBIGEDIT, QAEDIT, WIKIBIO))
    assert wiki.template == "What is the capital of {}?" and wiki.target_new == "Kelm"
    assert wiki.paraphrases == ("Orvanta's capital is?",) and wiki.locality == (Probe("What of Tor?", "Arl"),)
    assert (qa.id, qa.target_new) == ("NQ 4", "Kelm") and qa.locality == (Probe("What of Tor?", "Arl"),) * 2
    assert bio.template == "This is about {}. It" and bio.target_new == "is a land"


@pytest.mark.parametrize(
    "locality",
    [
        {"neighborhood": {"prompt": ["p", "q"], "ground_truth": ["a", "b"]}},
        {"neighborhood": {"prompt": ["p", "q"], "ground_truth": [["a", "other"], [["b"]]]}},
        {"one": {"prompt": "p", "ground_truth": "a"}, "two": {"prompt": "q", "ground_truth": ["b", "other"]}},
        {"one": [{"prompt": "p", "ground_truth": [["a"], ["c"]]}], "two": [{"prompt": "q", "ground_truth": "b"}]},
        {"one": [{"prompt": "p", "ground_truth": "a"}, {"prompt": "x", "ground_truth": []}, {"prompt": "y"}, None],
         "two": [], "three": None, "four": {"prompt": "q", "ground_truth": ["b"]}},
        {"prompt": ["p", "q"], "ground_truth": ["a", "b"]},
        [{"prompt": "p", "ground_truth": "a"}, {"prompt": "q", "ground_truth": ["b"]}],
        [{"loc": "p", "loc_ans": "a"}, {"loc": "q", "loc_ans": "b"}],
        [{"prompt": "p", "answer": "a"}, {"prompt": "q", "answer": "b"}],
        {"prompt": ["p", "q"], "answer": ["a", "b"]},  # as `datasets` gives a list of objects
    ],
)  # fmt: skip
@pytest.mark.parametrize("record", [FLAT, OWN])
def test_every_shape_of_locality(tmp_path, record, locality):
    portability = {"synonym": {"prompt": ["x"], "ground_truth": ["y"]}}
    (fact,) = load_facts(write(tmp_path, record | {"locality": locality, "portability": portability}))
    assert fact.locality == (Probe("p", "a"), Probe("q", "b"))


def test_parallel_lists_of_locality_are_zipped(tmp_path):
    def probes(prompts, answers):
        return load_facts(write(tmp_path, FLAT | {"locality_prompt": prompts, "locality_ground_truth": answers}))[
            0
        ].locality

    assert probes(["p", "q"], ["a", ["b", "c"]]) == (Probe("p", "a"), Probe("q", "b"))
    assert probes("p", ["a", "other wording"]) == (Probe("p", "a"),) == probes(["p"], "a")
    assert probes(["p", None, "q"], ["a", "x", "b"]) == (Probe("p", "a"), Probe("q", "b")), "pairs stay pairs"
    assert probes(["p"], None) == probes(None, ["a"]) == ()
    with pytest.raises(
        UserError,
        match="record 1: locality_prompt and locality_ground_truth should be lists of the same length; got 2 and 1",
    ):
        probes(["p", "q"], ["a"])


def test_own_and_easyedit_fields_beside_each_other_are_all_read(tmp_path):
    record = OWN | {"target_true": "Brun", "paraphrases": ["{}'s capital is"], "question": "?", "locality": {}}
    (fact,) = load_facts(write(tmp_path, record))
    assert (fact.target_true, fact.paraphrases, fact.question) == ("Brun", ("{}'s capital is",), "?")


def test_columns_of_another_form_that_are_empty_do_not_matter(tmp_path):
    """A table of several forms has every column in every row."""
    (fact,) = load_facts(write(tmp_path, OWN | {"requested_rewrite": None, "src": None, "alt": None, "update": None}))
    assert fact.target_new == "Kelm"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"question": "q", "answer": "a"},
            r"the fields \(question, answer\) are of no form that is read. .*ZsRE: subject",
        ),
        ({"\ud800": 1, "a\x1bb": 2, "é ü": 3}, r"the fields \('\\ud800', 'a\\x1bb', é ü\) are of no form"),
        ({}, r"field 'subject' is missing, as is every other"),
        ({"data": [FLAT]}, r"If the facts are the list under 'data', give a file that holds that list"),
        ({"a": FLAT, "b": FLAT}, r"If the facts are the values of this object"),
        (
            {"example_type": "x", "edit": {"subject_id": "Q1", "prompt": "p"}},
            r"RippleEdits names subjects by their ids",
        ),
        ({"prompt": "p", "target_new": "t"}, r"field 'subject' is missing .*Every form names the subject"),
        (
            {"subject": "s", "src": "s?"},
            r"field 'alt' is missing \(read as a ZsRE record with the fields subject, src\)",
        ),
        ({"subject": "s", "update": "s?"}, r"field 'ans' is missing \(read as a WikiBigEdit record"),
        (
            {"requested_rewrite": {"subject": "s", "prompt": "p", "target_true": {}}},
            r"field 'requested_rewrite.target_new' is missing \(read as a CounterFact record",
        ),
    ],
)
def test_records_of_another_form_name_the_forms(tmp_path, record, message):
    with pytest.raises(UserError, match=message):
        load_facts(write(tmp_path, record))


def test_a_flat_locality_needs_its_answers_by_either_of_their_names(tmp_path):
    """CKnowEdit calls them `locality_answer`."""
    (fact,) = load_facts(write(tmp_path, FLAT | {"locality_prompt": ["p"], "locality_answer": ["a"]}))
    assert fact.locality == (Probe("p", "a"),)
    with pytest.raises(
        UserError, match="record 1: field 'locality_ground_truth' is missing: 'locality_prompt' is there"
    ):
        load_facts(write(tmp_path, FLAT | {"locality_prompt": ["p"]}))
    assert not load_facts(write(tmp_path, FLAT | {"locality_prompt": None}))[0].locality
