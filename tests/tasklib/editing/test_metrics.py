"""The metrics of edit quality on answers made by hand, with the figures worked out by hand."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest

from lm_eval_edit.demo import CHECKPOINT
from lm_eval_edit.tasklib.editing import figures, metrics
from lm_eval_edit.tasklib.editing.tasks import pieces
from tests.conftest import ROOT

DOC = {"fact_id": "7"}


def target(*said, tokens=1):
    return [["target", tokens, (log_prob, greedy)] for log_prob, greedy in said]


def plain(row):
    return {name: value for name, value in row.items() if not name.endswith("_stderr")}


def test_edited():
    other = [["other", 1, (-1.0, True)], ["other", 1, (-2.5, False)]]
    answers = [*target((-1.0, True), (-2.0, False), (-0.5, True)), *other]
    row = metrics.edited(DOC, answers)
    # P(o*) = e^-3.5 and P(o) = e^-3.5: not likelier
    assert plain(row) == {"score": 0.0, "em": 0.0, "token_acc": pytest.approx(2 / 3), "prob_success": 0.0}
    assert row["token_acc_stderr"] == ("7", pytest.approx(2 / 3))
    row = metrics.edited(DOC, [*target((-1.0, True), (-2.0, True)), *other])
    assert plain(row) == {"score": 1.0, "em": 1.0, "token_acc": 1.0, "prob_success": 1.0}


def test_tokens_asked_together_count_as_right_only_together():
    answers = [["target", 3, (-1.0, False)], ["target", 1, (-1.0, True)]]
    assert metrics.edited(DOC, answers)["token_acc"] == 0.25
    assert metrics.edited(DOC, answers)["prob_success"] is None  # no object to beat
    assert metrics.edited(DOC, [["target", 0, (-1.0, True)]])["token_acc"] is None  # no tokenizer to count with


@pytest.mark.parametrize(
    ("said", "unchanged"),
    [([], None), (["says"], 1.0), (["says", "said unedited"], 1.0), (["says", "other words"], 0.0)],
)
def test_locality(said, unchanged):
    texts = [[role, 1, " Rome"] for role in said[:1]]
    texts += [["said unedited", 1, " Rome" if role == "said unedited" else " Oslo"] for role in said[1:]]
    row = metrics.locality(DOC, [*target((-0.1, True)), ["other", 1, (-0.05, False)], *texts])
    assert row["correct"] == row["score"] == 1.0 and row["unchanged"] == unchanged and row["prob_success"] == 0.0


def test_counterfact_of_one_fact():
    def pair(kind, new, true):
        return [[f"{kind} target", 1, (new, False)], [f"{kind} other", 1, (true, False)]]

    doc = DOC | {"paraphrases": ["a", "b"], "neighbourhood": ["c", "d", "e", "f"]}
    answers = [
        *pair("efficacy 0", -1, -2),
        *pair("paraphrase 0", -1, -2),
        *pair("paraphrase 1", -2, -1),
        *(each for n, true in enumerate((-1, -1, -1, -3)) for each in pair(f"neighbourhood {n}", -2, true)),
    ]
    row = metrics.counterfact(doc, answers)
    assert row["score"] == ("7", 1.0, 0.5, 0.75)
    assert (row["es"], row["ps"], row["ns"]) == (1.0, 0.5, 0.75)


def test_counterfact_score_is_the_harmonic_mean_of_means():
    items = [("a", 1.0, 1.0, 0.5), ("b", 0.0, 0.5, 0.5)]  # means 1/2, 3/4, 1/2
    assert figures.counterfact_score(items) == pytest.approx(3 / (2 + 4 / 3 + 2))
    assert figures.counterfact_score([("a", 1.0, 0.0, 1.0)]) == 0.0
    assert figures.counterfact_score([("a", 1.0, 1.0, 1.0)] * 3) == 1.0
    assert figures.counterfact_score_stderr([("a", 1.0, 1.0, 1.0), ("b", 1.0, 1.0, 1.0)]) == 0.0
    assert 0 < figures.counterfact_score_stderr(items) < 0.5


def test_means_leave_out_what_is_not_known():
    assert figures.known_mean([1.0, None, 0.0, 1.0]) == pytest.approx(2 / 3)
    assert math.isnan(figures.known_mean([None]))


def test_documents_of_one_fact_are_one_draw():
    """Four like answers of each of 20 facts tell no more than one of each; a plain s/√n would deny that."""
    facts = [(str(i), float(i % 2)) for i in range(20)]
    alone, repeated = figures.known_mean_stderr(facts), figures.known_mean_stderr(facts * 4)
    assert repeated == pytest.approx(alone) and alone == pytest.approx(math.sqrt(0.25 / 20), rel=0.1)
    independent = figures.known_mean_stderr([(f"{i}{n}", value) for n in range(4) for i, value in facts])
    assert independent == pytest.approx(alone / 2, rel=0.15)
    assert figures.known_mean_stderr([*facts, ("x", None)]) == pytest.approx(alone, rel=0.1)


def test_one_fact_has_no_standard_error():
    """Zero would say that the figure is exact; the harness says N/A."""
    assert math.isnan(figures.known_mean_stderr([("7", 1.0)]))
    assert math.isnan(figures.known_mean_stderr([("7", 1.0), ("7", 0.0), ("8", None)]))
    assert math.isnan(figures.counterfact_score_stderr([("7", 1.0, 1.0, 1.0)]))


def test_logged_responses():
    """As they stand in a samples file, numbers and flags as text."""
    logged = [["target", "1", ["-0.1", "True"]], ["target", "2", ["-0.7", "False"]], ["other", "1", ["-9.0", "False"]]]
    assert metrics.is_labelled(logged) and metrics.answer(logged) == ["True", "False", "False"]
    assert metrics.in_words(logged) == "1 of 2 pieces of the target are the likeliest"
    words = [*logged, ["says", "1", " Rome"], ["said unedited", "1", " Oslo"]]
    assert metrics.in_words(words) == " Rome" and metrics.answer(words)[3:] == [" Rome"]
    for others in (["a text"], [["-0.1", "True"], ["-0.2", "False"]], [["a", "b", "c"]], [], None):
        assert not metrics.is_labelled(others)


# ------------------------------------------------------------------------------------------------------------- pieces


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.mark.parametrize("context", ["Q: who?", "The city of Abo lies in", "Answer: "])
@pytest.mark.parametrize("text", [" fire fighter", " Gmina Łódź", " a", " Boötes 1998, 12", " two  spaces", " 日本"])
def test_pieces_are_the_tokens_of_the_whole(tokenizer, context, text):
    def ids(some):
        return tokenizer.encode(some, add_special_tokens=False)

    found = pieces(tokenizer, context, text)
    assert "".join(piece for piece, _ in found) == text
    whole, before, position = ids(context + text), context, len(ids(context.rstrip()))
    assert position + sum(tokens for _, tokens in found) == len(whole)
    for piece, tokens in found:  # what the harness makes of the request: the continuation is what the context leaves
        asked = ids(before + piece)[len(ids(before.rstrip())) :]
        assert asked == whole[position : position + tokens]
        before, position = before + piece, position + tokens


def test_single_tokens_wherever_text_can_ask_for_them(tokenizer):
    assert pieces(tokenizer, "a", " fire fighter") == [(" fire", 1), (" fighter", 1)]
    several = [tokens for _, tokens in pieces(tokenizer, "a", " Boötes")]
    assert max(several) > 1 and several.count(1) >= 2  # the bytes of one letter cannot be told apart as text
    assert pieces(None, "a", " fire fighter") == [(" fire fighter", 0)]


# ---------------------------------------------------------------------------------------------------- the page of docs/


def test_what_the_page_says_of_token_acc_holds_for_its_table():
    rows = json.loads((ROOT / "docs" / "edit_quality.json").read_text())["rows"]
    assert "`token_acc` is never below `em`" in (ROOT / "docs" / "edit_quality.md").read_text()
    for found in (row["figures"] for row in rows):
        for task in ("efficacy", "generalization"):
            assert found[f"{task}.token_acc"][0] >= found[f"{task}.em"][0]


def test_the_example_fails_with_a_method_it_cannot_measure():
    """It used to leave the method out of the table, and exit with 0."""
    command = [sys.executable, ROOT / "examples" / "demo_edit_quality.py", "--editors", "rmoe"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1 and "rmoe: lm-eval-edit: 1 problem" in done.stderr and "Traceback" not in done.stderr
