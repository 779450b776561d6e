"""The sets of the newer critiques, each in a small file of our own: what is read, what is passed over and why."""

from __future__ import annotations

import json

import pytest

from lm_eval_edit import EditSchedule, UserError, load_facts
from lm_eval_edit.editors.base import BUILT_IN, find_editor
from lm_eval_edit.editors.hyperparameters import resolve
from lm_eval_edit.edits.scheduled import usable
from lm_eval_edit.facts import Fact, Probe, Question, parse_record
from lm_eval_edit.facts.contradictions import repetitions
from tests.support.junk_records import facts_or_error, junk_records
from tests.support.set_records import (
    CAPITAL,
    CITIZEN,
    LONG,
    QAEDIT,
    RIPPLE,
    ULTRAEDITBENCH,
    UNKE,
    WIKIBIGEDIT,
    case,
    query,
    rewrite,
    write,
)
from tests.support.tiny import tiny_model

OPTIONS = {"mend": {"archive": "demo"}}


def test_wikibigedit(tmp_path):
    (fact,) = load_facts(write(tmp_path, WIKIBIGEDIT))
    assert (fact.subject, fact.target_new, fact.relation) == ("Orvanta", "Kelm", "P36")
    assert fact.paraphrases == ("Orvanta's capital is?",) and fact.locality == (Probe("What of Tor?", "Arl"),)
    assert fact.portability == (
        Question("multi_hop", "Who leads the capital of Orvanta?", ("Per Odd",)),
        Question("persona", "Matey, what be the capital of Orvanta?", ("Kelm",)),
    )


def test_qaedit(tmp_path):
    (fact,) = load_facts(write(tmp_path, QAEDIT))
    assert (fact.id, fact.target_new, fact.portability) == ("NQ 4", "Kelm", ())
    assert fact.locality == (Probe("What of Tor?", "Arl"),) * 5


def test_qaedit_counts_anew_in_each_of_its_sets(tmp_path):
    """37 numbers of the thousand records of its GitHub copy stand there two or three times."""
    facts = load_facts(write(tmp_path, QAEDIT, QAEDIT | {"source": "TQA"}, QAEDIT | {"source": None}))
    assert [fact.id for fact in facts] == ["NQ 4", "TQA 4", "4"]
    with pytest.raises(UserError, match="records 1 and 2 have the same id 'NQ 4'"):
        load_facts(write(tmp_path, QAEDIT, QAEDIT))


def test_ultraeditbench_names_no_subject(tmp_path):
    (fact,) = load_facts(write(tmp_path, ULTRAEDITBENCH))
    assert (fact.subject, fact.target_new, fact.text) == ("", "Kelm", "What is the capital of Orvanta?")


def test_unke_is_a_long_answer_with_its_parts(tmp_path):
    (fact,) = load_facts(write(tmp_path, UNKE))
    assert (fact.subject, fact.text, fact.target_new) == ("", "What is told of Orvanta?", LONG)
    assert fact.paraphrases == ("Tell of Orvanta.",)
    assert fact.portability == (
        Question("part", "What was built in 1900?", ("A new hall",)),
        Question("part", "Where?", ("By the river",)),
    )


def test_ripple_edits_where_subject_and_target_are_resolved(tmp_path):
    (fact,) = load_facts(write(tmp_path, RIPPLE))
    assert (fact.text, fact.subject, fact.target_new) == ("The name of the capital of Orvanta is", "Orvanta", "Kelm")
    assert (fact.target_true, fact.relation) == ("Brun", "CAPITAL")
    assert fact.locality == (Probe("The currency of Orvanta is", "dor"), Probe("A language of Orvanta is", "Orv"))
    assert fact.portability == (
        Question("logical", "Kelm is the capital of", ("Orvanta",)),
        Question("multi_hop", "The mayor of its capital is", ("Per Odd",), "Compositionality_I 0", "all"),
        Question("multi_hop", "Its capital lies on the", ("Lenta",), "Compositionality_I 0", "all"),
        Question("alias", "The capital of the Republic of Orvanta is", ("Kelm", "Kelm City")),
    )


def test_every_answer_of_a_query_of_ripple_edits_has_to_be_said(tmp_path):
    """As the published code has it; a query with an answer that has no text cannot be judged."""
    siblings = query("The siblings of Per Odd are", "Ilse Odd", "I", "Ilse")
    both = siblings | {"answers": [*siblings["answers"], {"value": "Ned Odd", "aliases": []}]}
    nameless = siblings | {"answers": [*siblings["answers"], {"value": "", "aliases": []}]}
    tests = [
        {"test_queries": [both], "test_condition": "OR"},
        {"test_queries": [nameless], "test_condition": "OR"},
        {"test_queries": [nameless, siblings], "test_condition": "OR"},
        {"test_queries": [nameless, siblings], "test_condition": "AND"},
        {"test_queries": [query("Q", "x"), siblings | {"prompt": " "}], "test_condition": "AND"},
    ]
    axes = {"Subject_Aliasing": [], "Compositionality_I": [], "Logical_Generalization": tests}
    (fact,) = load_facts(write(tmp_path, RIPPLE | axes | {"Forgetfulness": [{"test_queries": [nameless]}]}))
    one = ("Ilse Odd", "Ilse"), None, "any"
    assert fact.portability == (
        Question("logical", "The siblings of Per Odd are", *one, also=(("Ned Odd",),)),
        Question("logical", "The siblings of Per Odd are", *one),
    )
    assert fact.locality[-1] == Probe("The siblings of Per Odd are", "Ilse Odd")


def test_the_copy_of_ripple_edits_with_texts_beside_the_ids_is_read(tmp_path):
    """Its prompts are there without their objects, too."""
    edit = {
        "fact_prompt": "The name of the capital of Orvanta is", "prompt": "The name of the capital of Orvanta is K.C.",
        "subject_id": "Q5", "subject_label": "Orvanta", "target_id": "Q6", "target_label": "Kelm City",
        "relation": "CAPITAL", "fact_query": {"prompt": "The name of the capital of Orvanta is", "phrase": None},
    }  # fmt: skip
    (fact,) = load_facts(write(tmp_path, RIPPLE | {"edit": edit}))
    assert (fact.text, fact.subject, fact.target_new, fact.target_true) == (
        edit["fact_prompt"], "Orvanta", "Kelm City", None,
    )  # fmt: skip
    assert load_facts(write(tmp_path, RIPPLE | {"edit": without(edit, "prompt")}))[0] == fact
    # What has no label there is an empty text.
    facts = load_facts(write(tmp_path, RIPPLE, RIPPLE | {"edit": edit | {"target_label": ""}}))
    assert "its target by its id only (Q6)" in facts.skipped[0].reason


@pytest.mark.parametrize("several", [False, True])
def test_rewrites_that_a_table_has_flattened_are_read(tmp_path, several):
    """MQuAKE-Remastered as the hub has it."""
    flat = without(without(CAPITAL, "target_new"), "target_true")
    flat |= {"target_new_str": "Arl", "target_new_id": "Q1", "target_true_str": "Tor", "target_true_id": None}
    record = {"case_id": 1, "requested_rewrite": [CITIZEN, flat] if several else flat}
    (tmp_path / "deep").mkdir()
    facts = load_facts(write(tmp_path, record))
    deep = load_facts(
        write(tmp_path / "deep", record | {"requested_rewrite": [CITIZEN, CAPITAL] if several else CAPITAL})
    )
    assert list(facts) == list(deep) and (facts[-1].target_new, facts[-1].target_true) == ("Arl", "Tor")
    broken = without(flat, "target_new_str")
    with pytest.raises(UserError, match=r"field 'requested_rewrite(\[1\])?.target_new' is missing"):
        load_facts(write(tmp_path, record | {"requested_rewrite": [CITIZEN, broken] if several else broken}))


@pytest.mark.parametrize(
    ("target", "sentence", "prompt"),
    [
        ("Washington D.C.", "The capital of Orvanta is Washington D.C..", "The capital of Orvanta is"),
        ("Washington D.C.", "The capital of Orvanta is Washington D.C.", "The capital of Orvanta is"),
        ("Kelm", "The capital of Orvanta is", "The capital of Orvanta is"),
        ("凯姆", "Orvanta的首都是凯姆。", "Orvanta的首都是"),
    ],
)
def test_the_sentence_of_ripple_edits_ends_where_its_object_begins(tmp_path, target, sentence, prompt):
    (fact,) = load_facts(write(tmp_path, RIPPLE | {"edit": RIPPLE["edit"] | {"prompt": sentence, "target": target}}))
    assert fact.text == prompt and fact.target_new == target


def test_ripple_edits_with_ids_only_are_passed_over_with_the_reason(tmp_path):
    edit = {name: value for name, value in RIPPLE["edit"].items() if name not in ("subject", "target")}
    facts = load_facts(write(tmp_path, RIPPLE | {"edit": edit}, RIPPLE))
    assert [fact.id for fact in facts] == ["1"]
    (skipped,) = facts.skipped
    assert (skipped.id, skipped.record) == ("0", 1)
    assert skipped.reason == (
        "it names its subject by its id only (Q5) and its target by its id only (Q6); RippleEdits names subjects by "
        "their ids only: a copy with their texts is needed"
    )


def test_cases_of_mquake_stay_together_in_every_order(tmp_path):
    facts = load_facts(write(tmp_path, *(case(n, CITIZEN, CAPITAL) for n in range(30))))
    order = EditSchedule(40, seed=5).order(facts)
    assert [fact.id for fact in order][::2] != [f"{n}.0" for n in range(20)]
    for first, second in zip(order[::2], order[1::2], strict=True):
        assert first.case == second.case == (first.id, second.id)
    assert EditSchedule(20, seed=5).order(facts) == order[:20]
    assert EditSchedule(4, seed=None).order(facts) == list(facts[:4])


def test_cases_that_contradict_each_other_are_told(tmp_path):
    """What MQuAKE-Remastered mends."""
    other = CAPITAL | {"target_new": {"str": "Ned", "id": "Q8"}}
    facts = load_facts(write(tmp_path, case(1, CITIZEN, CAPITAL), case(2, CITIZEN, other)))
    found = repetitions(facts)
    assert found.contradicting == (("1.1", "2.1"),) and found.repeated == (("1.0", "2.0"),)


@pytest.mark.parametrize(
    ("record", "lacking", "message"),
    [
        (WIKIBIGEDIT, "subject", "field 'subject' is missing"),
        (WIKIBIGEDIT, "ans", r"field 'ans' is missing \(read as a WikiBigEdit record"),
        (WIKIBIGEDIT, "update", "field 'prompt' is missing|fields .* are missing|'update' is missing|lacks update"),
        (WIKIBIGEDIT, "mhop_ans", "field 'mhop_ans' is missing: 'mhop' is there, and needs its answer"),
        (WIKIBIGEDIT, "loc_ans", "field 'loc_ans' is missing: 'loc' is there"),
        (QAEDIT, "target", "field 'target_new' is missing"),
        (QAEDIT, "prompt", "field 'prompt' is missing"),
        (QAEDIT, "subject", "field 'subject' is missing"),
        (ULTRAEDITBENCH, "ans", "fields 'subject', 'target_new' are missing|lacks .*ans"),
        (ULTRAEDITBENCH, "loc_ans", "field 'loc_ans' is missing: 'loc' is there"),
        (UNKE, "answer", r"field 'answer' is missing \(read as a UnKE record"),
        (UNKE, "question", r"field 'question' is missing \(read as a UnKE record"),
        (UNKE, "para_question", r"field 'para_question' is missing \(read as a UnKE record"),
        (UNKE, "sub_answer", "field 'sub_answer' is missing: 'sub_question' is there"),
        (case(1, CITIZEN), "new_answer", "field 'new_answer' is missing: 'questions' is there"),
    ],
)
def test_a_record_that_lacks_a_field_names_file_record_and_field(tmp_path, record, lacking, message):
    broken = {name: value for name, value in record.items() if name != lacking}
    with pytest.raises(UserError, match=rf"facts.json, record 2: .*({message})"):
        load_facts(write(tmp_path, record | {"id": "whole"}, broken | {"id": "broken"}))


@pytest.mark.parametrize("lacking", ["prompt", "target_new", "subject"])
def test_a_rewrite_that_lacks_a_field_is_named_by_its_place(tmp_path, lacking):
    broken = {name: value for name, value in CAPITAL.items() if name != lacking}
    with pytest.raises(UserError, match=rf"record 1: field 'requested_rewrite\[1\].{lacking}' is missing"):
        load_facts(write(tmp_path, case(1, CITIZEN, broken)))


def test_an_edit_of_ripple_edits_that_lacks_a_field_is_named_by_its_place(tmp_path):
    for names, told in ((("target", "target_id"), "edit.target_id"), (("subject", "subject_id"), "edit.subject_id")):
        edit = {name: value for name, value in RIPPLE["edit"].items() if name not in names}
        with pytest.raises(UserError, match=rf"record 1: field '{told}' is missing \(read as a RippleEdits record"):
            load_facts(write(tmp_path, RIPPLE | {"edit": edit}))
    broken = RIPPLE | {"Subject_Aliasing": [{"test_queries": [query("a", "b")], "test_condition": "XOR"}]}
    with pytest.raises(UserError, match=r"Subject_Aliasing\[0\].test_condition should be OR or AND; got 'XOR'"):
        load_facts(write(tmp_path, broken))
    with pytest.raises(UserError, match=r"Forgetfulness should be a list; got 'x'"):
        load_facts(write(tmp_path, RIPPLE | {"Forgetfulness": "x"}))


@pytest.mark.parametrize("role", ["target_new", "target_true"])
@pytest.mark.parametrize("several", [False, True])
def test_an_object_without_its_text_is_named_by_its_place(tmp_path, role, several):
    broken = CAPITAL | {role: {"id": "Q1"}}
    record = {"case_id": 1, "requested_rewrite": [CITIZEN, broken] if several else broken}
    place = f"requested_rewrite{'[1]' if several else ''}.{role}.str"
    with pytest.raises(UserError) as error:
        load_facts(write(tmp_path, record))
    assert f"record 1: field '{place}' is missing" in str(error.value)


def without(record: dict, *path: str | int) -> dict:
    copy = json.loads(json.dumps(record))
    inner = copy
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return copy


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (("edit",), "fields 'edit.prompt', 'edit.subject_id', 'edit.target_id' are missing (read as a RippleEdits"),
        (("edit", "prompt"), "field 'edit.prompt' is missing (read as a RippleEdits"),
        (("Forgetfulness", 0, "test_queries"), "field 'Forgetfulness[0].test_queries' is missing"),
        (
            ("Compositionality_I", 0, "test_queries", 1, "answers"),
            "field 'Compositionality_I[0].test_queries[1].answers' is missing",
        ),
        (
            ("Relation_Specifity", 0, "test_queries", 0, "prompt"),
            "field 'Relation_Specifity[0].test_queries[0].prompt' is missing",
        ),
    ],
)
def test_a_test_of_ripple_edits_that_lacks_a_field_is_named_by_its_place(tmp_path, path, told):
    """A query that were left out would make a test of several easier."""
    with pytest.raises(UserError) as error:
        load_facts(write(tmp_path, without(RIPPLE, *path)))
    assert f"record 1: {told}" in str(error.value) and "If the facts are the list" not in str(error.value)


def test_zsre_and_qaedit_need_their_probes_answers(tmp_path):
    zsre = {"subject": "Orvanta", "src": "What is Orvanta?", "alt": "Kelm", "loc": "nq question: who"}
    with pytest.raises(UserError, match="record 1: field 'loc_ans' is missing: 'loc' is there"):
        load_facts(write(tmp_path, zsre))
    assert load_facts(write(tmp_path, zsre | {"loc_ans": None}))[0].locality == ()
    with pytest.raises(UserError, match=r"record 1: field 'locality\[1\].loc_ans' is missing"):
        load_facts(write(tmp_path, without(QAEDIT, "locality", 1, "loc_ans")))
    with pytest.raises(UserError, match=r"record 1: field 'locality\[1\].loc' is missing"):
        load_facts(write(tmp_path, without(QAEDIT, "locality", 1, "loc")))


def test_forms_that_state_an_id_and_forms_that_do_not_are_mixed(tmp_path):
    """A record without an id is called by its position, unless another record says that this is its id."""
    counterfact = {"case_id": 0, "requested_rewrite": CAPITAL}
    facts = load_facts(write(tmp_path, WIKIBIGEDIT, RIPPLE, counterfact, case(1, CITIZEN), UNKE | {"id": 7}))
    assert [fact.id for fact in facts] == ["record 1", "record 2", "0", "1.0", "7"]
    with pytest.raises(UserError, match="records 1 and 2 have the same id '0'"):
        load_facts(write(tmp_path, counterfact, counterfact))


@pytest.mark.parametrize(
    ("record", "nearest"),
    [
        ({"question": "q", "answer": "a"}, "It comes nearest to UnKE, of which it lacks para_question"),
        ({"prompt": "p", "label": "l"}, "It comes nearest to UltraEditBench, of which it lacks ans"),
        ({"update": "u", "answer": "a"}, "WikiBigEdit, of which it lacks subject, ans"),
    ],
)
def test_a_file_of_another_form_names_the_forms_it_could_be(tmp_path, record, nearest):
    with pytest.raises(UserError) as error:
        load_facts(write(tmp_path, record))
    message = str(error.value)
    assert "are of no form that is read" in message and nearest in message
    assert all(name in message for name in ("MQuAKE", "RippleEdits", "UnKE", "WikiBigEdit", "UltraEditBench", "QAEdit"))


MARKED = "الأر\u200fدن"  # a right-to-left mark inside
STACKED = "Nguye\u0302\u0303n"  # two combining marks on one letter


@pytest.mark.parametrize(
    ("subject", "target", "alias"),
    [
        ("奥尔万塔共和国", "凯尔姆", "凯姆"),
        (MARKED, "عمّان", "عَمّان"),
        (STACKED, "Hà No\u0323\u0302i", "Hà Nội"),
        ("ಕರ್ನಾಟಕ", "ಬೆಂಗಳೂರು", "बेंगलुरु"),
    ],
)
def test_other_scripts_go_through_every_reader_unharmed(tmp_path, subject, target, alias):
    asked, other = f"{subject}？", f"¿{subject}?"
    wiki = WIKIBIGEDIT | {"subject": subject, "update": asked, "ans": target, "mhop": other, "mhop_ans": alias}
    qa = QAEDIT | {
        "subject": subject,
        "prompt": asked,
        "target": target,
        "locality": [{"loc": other, "loc_ans": alias}],
    }
    ultra = {"prompt": asked, "ans": target, "rephrase_prompt": other, "id": "u"}
    unke = {"question": asked, "para_question": other, "answer": target, "sub_question": [other], "sub_answer": [alias]}
    quake = case(9, rewrite(subject, "{}：", target, alias, "P1"), new_answer=target, new_answer_alias=[alias])
    ripple = {
        "edit": {"prompt": f"{asked} {target}.", "subject": subject, "target": target},
        "Subject_Aliasing": [{"test_queries": [query(other, target, alias)]}],
    }
    facts = load_facts(write(tmp_path, wiki, qa, ultra, unke | {"id": "k"}, quake, ripple))
    assert not facts.skipped and len(facts) == 6
    for fact in facts:
        assert fact.target_new == target and (not fact.subject or fact.subject == subject)
        assert parse_record(json.loads(json.dumps(fact.record())), "here", "0") == fact
        assert subject in fact.text
    assert facts[0].portability[0] == Question("multi_hop", other, (alias,))
    assert facts[1].locality == (Probe(other, alias),)
    assert facts[3].portability == (Question("part", other, (alias,)),)
    assert facts[4].portability[0].answers == facts[5].portability[0].answers == (target, alias)


def test_whatever_a_record_of_these_sets_holds_the_answer_is_facts_or_a_user_error():
    good = (WIKIBIGEDIT, QAEDIT, ULTRAEDITBENCH, UNKE, RIPPLE, case(1, CITIZEN, CAPITAL))
    inner = (
        "prompt", "answers", "value", "aliases", "test_queries", "test_condition", "subject", "target", "kind", "also",
    )  # fmt: skip
    texts = ("", " ", "Orvanta", "{}", "\ud800", "OR", "AND", "alias")
    read = 0
    for record in junk_records(7, 3000, good, ("portability", "portability_prompt"), inner, texts):
        for fact in facts_or_error(record):
            read += 1
            assert all(question.answers and question.prompt.strip() for question in fact.portability)
    assert read > 500


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "easyeditor"])
def test_a_long_text_is_for_editors_that_learn_texts(name):
    resolved, problems = resolve(find_editor(name), tiny_model().config, OPTIONS.get(name, {}))
    assert not problems
    about = Fact("Orvanta", "What is told of {}?", LONG, id="1")
    sentence = Fact("Orvanta", "What is told of {}?", LONG[:499], id="1")
    reason = resolved.editor.fact_problem(about)
    if name in ("ft", "lora", "ultraedit"):
        assert reason is None
    else:
        assert f"the object is a text of {len(LONG)}; editor=ft, lora and ultraedit learn texts" in reason
    assert "object is a text" not in (resolved.editor.fact_problem(sentence) or "")


def test_what_an_editor_cannot_learn_is_listed_with_the_reason(tmp_path):
    file = write(tmp_path, UNKE, UNKE | {"id": 1, "subject": "Orvanta"}, QAEDIT)
    resolved, _ = resolve(find_editor("rome"), tiny_model().config, {})
    facts = usable(load_facts(file), resolved.editor)
    assert [fact.id for fact in facts] == ["NQ 4"]
    first, second = facts.skipped
    assert first.id == "0" and first.reason.startswith("rome needs the subject")
    assert second.id == "1" and second.reason.startswith("rome writes names, phrases and a sentence at most (500")
