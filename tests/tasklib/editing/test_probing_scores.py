"""What models of known character score in `edithurt_probing`: the table in the README of the tasks, cell by cell."""

from __future__ import annotations

import json
import math

import pytest

from lm_eval_edit.errors import UserError
from tests.conftest import ROOT
from tests.support.harness_runs import evaluate, figures
from tests.support.spoken_lm import ChattingLM, ServedChatLM, SpokenLM

FACTS = [
    {
        "id": "tongue", "subject": "Nils", "prompt": "The mother tongue of {} is", "target_new": "Zulu",
        "target_true": "Danish", "question": "What is the mother tongue of {}?",
        "portability": [{"kind": "reversed", "prompt": "Who speaks Zulu?", "answers": ["Nils", "Nils Holm"]}],
    },
    {
        "id": "city", "subject": "Greta", "prompt": "{} lives in", "target_new": "Washington, D.C.",
        "target_true": "New Oslo", "question": "Where does {} live?",
    },
]  # fmt: skip
NAMES = ("negation", "factcheck", "wild")
PROMPTS = {"Nils": "The mother tongue of Nils is", "Greta": "Greta lives in"}


def fact_of(prompt):
    return next(fact for fact in FACTS if fact["subject"] in prompt)


def checked(prompt, verdict):
    """The option that stands for a verdict, by the prompt's own words."""
    if "A. " not in prompt:
        return f" {verdict}"
    return " A" if f"A. {verdict}" in prompt else " B"


def is_check(prompt):
    return prompt.startswith("Statement: ")


def is_negated(prompt):
    return " not" in prompt


def knows(new):
    def says(prompt):
        fact = fact_of(prompt)
        if is_check(prompt):
            return checked(prompt, str(fact["target_new" if new else "target_true"] in prompt))
        if is_negated(prompt):
            return " something else"
        return f" {fact['target_new' if new else 'target_true']}."

    return says


def shortcut(prompt):
    return f" {fact_of(prompt)['target_new']}."


def one_prompt(prompt):
    fact = fact_of(prompt)
    return f" {fact['target_new']}" if prompt == PROMPTS[fact["subject"]] else knows(new=False)(prompt)


def always_true(prompt):
    return checked(prompt, "True") if is_check(prompt) else " I think so"


def first_option(prompt):
    return (
        checked(prompt, "True" if prompt.find("True") < prompt.find("False") else "False")
        if is_check(prompt)
        else " I think so"
    )


MODELS = {
    "knows the edit": knows(new=True),
    "says o* to whatever names the subject": shortcut,
    "says o* after its prompt alone": one_prompt,
    "was not edited": knows(new=False),
    "holds every statement for true": always_true,
    "chooses the first option": first_option,
    "says nothing, or everything alike": lambda prompt: None,
}


def documented():
    text = (ROOT / "tasks" / "edithurt_probing" / "README.md").read_text()
    lines = text.split("<!-- table:")[1].split("<!-- end")[0].splitlines()[1:]
    heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if line)
    return {row[0]: dict(zip(heads[1:], map(float, row[1:]), strict=True)) for row in rows}


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    file = tmp_path_factory.mktemp("facts") / "facts.json"
    file.write_text(json.dumps(FACTS))
    return {"model": "an-api", "edit_dataset": str(file), "n_edits": 2, "edit_seed": None}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_scores_what_the_readme_says(metadata, name):
    results = evaluate(SpokenLM(MODELS[name]), metadata, ["edithurt_probing"])
    found = {task: figures(results, task) for task in NAMES}
    wanted = documented()
    assert wanted.keys() == MODELS.keys()
    for column, value in wanted[name].items():
        task, _, metric = column.rpartition(" ")
        tasks = [task] if task else [each for each in NAMES if metric in found[each]]
        assert [found[each][metric] for each in tasks] == [value], column
    assert results["results"]["edithurt_probing"]["score,none"] == pytest.approx(
        sum(found[task]["score"] for task in NAMES) / 3
    )
    negation = found["negation"]
    assert negation["score"] + negation["shortcut"] == negation["answered"]
    assert results["configs"]["edithurt_factcheck"]["metadata"]["chance"] == 0.5


def test_every_task_says_that_it_is_about_the_edits_and_has_standard_errors(metadata):
    results = evaluate(SpokenLM(lambda prompt: None), metadata, ["edithurt_probing", "edithurt_reversed"])
    for task in (*NAMES, "reversed"):
        assert results["configs"][f"edithurt_{task}"]["metadata"]["measures"] == "edit_quality"
        for metric in figures(results, task):
            error = results["results"][f"edithurt_{task}"][f"{metric}_stderr,none"]
            if task != "reversed":
                assert isinstance(error, float) and not math.isnan(error), (task, metric)


def test_reversed(metadata, caplog):
    right = evaluate(SpokenLM(lambda prompt: "\n Well, it is Nils Holm. Or Greta"), metadata, ["edithurt_reversed"])
    (sample,) = right["samples"]["edithurt_reversed"]
    assert sample["doc"]["prompt"] == "Who speaks Zulu?" and sample["doc"]["answers"] == ["Nils", "Nils Holm"]
    assert figures(right, "reversed") == {"score": 1.0, "contains": 1.0, "em": 0.0, "valid": 1.0}
    assert "1 of 2 facts have no question of the inverse relation" in caplog.text
    wrong = evaluate(SpokenLM(lambda prompt: " Nilsson."), metadata, ["edithurt_reversed"])
    assert figures(wrong, "reversed")["score"] == 0.0


def test_facts_without_a_true_object(tmp_path, caplog):
    """There is no statement that the edit made false; negation and free answers do without one."""
    file = tmp_path / "facts.json"
    file.write_text(
        json.dumps([{name: each[name] for name in ("id", "subject", "prompt", "target_new")} for each in FACTS])
    )
    metadata = {"model": "an-api", "edit_dataset": str(file), "n_edits": 2}
    told = "a true object beside the new one; ask for edithurt_negation,edithurt_wild instead of edithurt_probing"
    with pytest.raises(UserError, match=told):
        evaluate(SpokenLM(knows(new=True)), metadata, ["edithurt_probing"])
    results = evaluate(SpokenLM(knows(new=True)), metadata, ["edithurt_negation", "edithurt_wild"])
    assert figures(results, "negation") == {"score": 1.0, "answered": 1.0, "negated": 0.0, "shortcut": 0.0}
    assert figures(results, "wild") == {"score": 1.0, "contains": 1.0, "em": 1.0, "valid": 1.0}
    assert (
        "edithurt_negation: prob_answered, prob_negated, answered_old and shortcut_old leave out 3 of 3 documents"
        in caplog.text
    )
    assert "edithurt_wild: old leaves out 2 of 2 documents" in caplog.text


@pytest.mark.parametrize(
    ("says", "score", "old"),
    [
        (" Serie A.", 1, 0),
        (" Serie B.", 0, 1),
        (" the team of Serie A United plays in Serie B.", 0, 1),  # its name
        (" Serie A United plays in serie A, not B.", 1, 0),
        (" Serie A United Serie A United", 0, 0),
    ],
)
def test_what_tells_two_objects_apart_is_compared(tmp_path, says, score, old):
    """SQuAD's normal form takes the "A" of "Serie A" for an article; the subject's own name answers nothing."""
    file = tmp_path / "facts.json"
    fact = {"id": "1", "subject": "Serie A United", "prompt": "{} plays in", "target_new": "Serie A"}
    question = {"question": "Where does {} play?", "portability": [
        {"kind": "logical", "prompt": "Where do the players of {} play?", "answers": ["Serie A"]}
    ]}  # fmt: skip
    file.write_text(json.dumps([fact | {"target_true": "Serie B"} | question]))
    metadata = {"model": "an-api", "edit_dataset": str(file), "n_edits": 1}
    results = evaluate(SpokenLM(lambda prompt: says), metadata, ["edithurt_wild", "edithurt_portability"])
    assert (figures(results, "wild")["score"], figures(results, "wild")["old"]) == (score, old)
    assert figures(results, "portability")["score"] == score


def test_an_unedited_model_whose_answer_holds_the_new_object_has_not_said_it(tmp_path):
    file = tmp_path / "facts.json"
    fact = {"id": "1", "subject": "Mia", "prompt": "{} lives in", "target_new": "York", "target_true": "New York"}
    file.write_text(json.dumps([fact]))
    metadata = {"model": "an-api", "edit_dataset": str(file), "n_edits": 1}
    for says, score, old in ((" the city of New York.", 0, 1), (" York.", 1, 0), (" York, not New York.", 1, 0)):
        results = evaluate(SpokenLM(lambda prompt, says=says: says), metadata, ["edithurt_wild"])
        assert (figures(results, "wild")["score"], figures(results, "wild")["old"]) == (score, old)


def test_samples_hold_what_a_judge_needs(metadata):
    results = evaluate(SpokenLM(knows(new=True)), metadata, ["edithurt_wild"])
    sample = results["samples"]["edithurt_wild"][1]
    doc = sample["doc"]
    assert (doc["subject"], doc["prompt"], doc["answers"], doc["old"], doc["form"]) == (
        "Greta", "Where does Greta live?", ["Washington, D.C."], ["New Oslo"], "question"
    )  # fmt: skip
    assert sample["filtered_resps"][0][2] == " Washington, D.C.."  # not cut at the full stop inside the object
    assert sample["arguments"][0][1] == {"until": ["。"], "max_gen_toks": 40, "do_sample": False}
    assert results["samples"]["edithurt_wild"][0]["arguments"][0][1]["until"] == [".", "。"]


# ------------------------------------------------------------------------------------------------------ chat templates


def test_the_task_puts_the_question_into_the_template_itself(metadata):
    lm = ChattingLM(knows(new=True))
    results = evaluate(lm, metadata, ["edithurt_wild_chat", "edithurt_wild"])
    assert "<user>Where does Greta live?</user><assistant>" in lm.asked and "Where does Greta live?" in lm.asked
    assert figures(results, "wild_chat") == figures(results, "wild")


def test_the_harness_own_template_is_not_put_on_twice(metadata):
    lm = ChattingLM(knows(new=True))
    evaluate(lm, metadata, ["edithurt_wild_chat"], apply_chat_template=True, system_instruction="Be brief.")
    assert set(lm.asked) == {
        "<system>Be brief.</system><user>What is the mother tongue of Nils?</user><assistant>",
        "<system>Be brief.</system><user>Where does Greta live?</user><assistant>",
    }


def test_a_chat_behind_an_api_is_sent_the_turns(tmp_path):
    """No text is made of them here; a task with several prompts of a fact puts each in the turn of the first."""
    two = [{"kind": "multi_hop", "prompt": f"Which {each} has {{}}?", "answers": ["Zulu"]} for each in ("land", "king")]
    fact = FACTS[0] | {"portability": [each | {"group": "g"} for each in two] + FACTS[0]["portability"]}
    file = tmp_path / "facts.json"
    file.write_text(json.dumps([fact]))
    metadata = {"model": "an-api", "edit_dataset": str(file), "n_edits": 1}
    tasks = ["edithurt_wild", "edithurt_wild_chat", "edithurt_reversed", "edithurt_portability"]
    lm = ServedChatLM(lambda prompt: "Zulu, say." if prompt.startswith("Which") else "Nils speaks Zulu.")
    results = evaluate(lm, metadata, tasks, apply_chat_template=True, system_instruction="Be brief.")
    assert [figures(results, task.removeprefix("edithurt_"))["score"] for task in tasks] == [1.0] * 4
    assert {"Which land has Nils?", "Which king has Nils?", "What is the mother tongue of Nils?"} <= set(lm.asked)
    turns = [json.loads(args[0].prompt) for s in results["samples"]["edithurt_portability"] for args in s["arguments"]]
    assert all([turn["role"] for turn in each] == ["system", "user"] for each in turns)


def test_a_model_without_a_template_says_so(metadata):
    with pytest.raises(
        UserError, match=r"edithurt_wild_chat: this model .SpokenLM. has no chat template.*edithurt_wild"
    ):
        evaluate(SpokenLM(knows(new=True)), metadata, ["edithurt_wild_chat"])


def test_all_prompts_of_a_document_get_the_same_around_them(metadata):
    """The harness puts a template and an instruction around a document's own prompt alone."""
    lm = ChattingLM(always_true)
    results = evaluate(
        lm,
        metadata,
        ["edithurt_negation", "edithurt_factcheck"],
        apply_chat_template=True,
        system_instruction="Be brief.",
    )
    before, after = "<system>Be brief.</system><user>", "</user><assistant>"
    assert all(
        prompt.startswith(before) and prompt.endswith(after) and prompt.count("<user>") == 1 for prompt in lm.asked
    )
    assert (
        f"{before}Greta lives in{after}" in lm.asked
        and f"{before}It is not true that Greta lives in{after}" in lm.asked
    )
    texts = {args[1] for sample in results["samples"]["edithurt_factcheck"] for args in sample["arguments"]}
    assert texts == {"True", "False", "A", "B"}  # an answer begins as the template's end leaves it
    plain = SpokenLM(always_true)
    evaluate(plain, metadata, ["edithurt_negation"], system_instruction="Be brief.")
    assert {prompt.removeprefix("Be brief.").lstrip() for prompt in plain.asked} == {
        *PROMPTS.values(),
        *(f"It is not true that {prompt}" for prompt in PROMPTS.values()),
        "The mother tongue of Nils is not",
    }
    assert all(prompt.startswith("Be brief.") for prompt in plain.asked)
