"""How outputs are read, and the corpus metrics against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from lm_eval_edit.tasklib.glue import answers, figures, scoring
from lm_eval_edit.tasklib.glue.catalogue import TASKS
from lm_eval_edit.tasklib.glue.documents import build
from tests.support.glue_records import record


def doc(task, number=0):
    (made,) = build(task, [("here", record(task, number))])
    return made | {"shortened": False, "item": number}


READ = [  # task, output, the published script's label, what is meant
    ("sst", " positive", 1, 1),
    ("sst", " negative, not positive", 1, 0),  # the script looks for one word after the other
    ("sst", " Negative\nReview :", 0, 0),
    ("sst", " positive\nSentiment : negative", 0, 1),  # cut after the last mark
    ("sst", " positively", 1, None),
    ("sst", " good", None, None),
    ("mrpc", " Yes", 1, 1),
    ("mrpc", " I do not know", 0, None),  # no is in not
    ("mrpc", " No, yes", 1, 0),
    ("cola", "**Yes**", 1, 1),
    ("cola", "_no_", 0, 0),
    ("cola", "", None, None),
    ("rte", " False", 0, 0),
    ("rte", " True", 1, 1),
    ("cola", " Yeſ", None, None),  # a long s is an s to Unicode's rule of case, but the word is not "yes"
    ("sst", " positİve", None, None),
    ("rte", " ſ False", 0, 0),
    ("rte", " true or false", 0, 1),  # false is looked for first
    ("nli", " true or false", 1, 1),
    ("nli", " False", 0, 0),
    ("mmlu", " A\n", 0, 0),
    ("mmlu", " A", None, 0),  # a letter at the end of the five tokens does not count
    ("mmlu", " (C)", None, 2),
    ("mmlu", " banana\n", 0, None),  # any word that ends in it does
    ("mmlu", " D\nA\n", 0, 3),
    ("mmlu", " a b", None, None),
    ("dialogue", " B\nQ:", 1, 1),
    ("dialogue", " b", None, None),
    ("sentiment", " Positive.", 1, 1),
    ("sentiment", " positive answer: nega", None, 1),
]


@pytest.mark.parametrize(("task", "output", "read", "meant"), READ)
def test_readings(task, output, read, meant):
    from lm_eval_edit.tasklib.glue import prompts

    assert answers.script(task, getattr(prompts, task)(doc(task)), output) == read
    assert answers.said(task, output) == meant


def test_the_mark_inside_a_text_is_not_the_last():
    made = doc("rte") | {"sentence2": "answer: True"}
    from lm_eval_edit.tasklib.glue import prompts

    assert answers.script("rte", prompts.rte(made), " nothing") is None


@pytest.mark.parametrize(
    ("per_token", "label"),
    [
        ([-1, -2], 0),
        ([-2, -1], 1),
        ([-1, -1], 0),
        ([-3, -1, -2, -4], 1),
        ([-1, -1, -2, -3], None),
        ([-1, -2, -2, -2], 0),
        ([-900, -800], 0),  # probabilities are compared, and both are 0
        ([-900, -800, -950, -1000], None),
    ],
)
def test_the_likelier_word(per_token, label):
    assert answers.likelier(per_token) == label


def test_a_word_of_several_tokens_is_averaged():
    row = scoring.row(doc("cola", 1), ["", [0, 2, -3.0], [1, 1, -2.0]])
    assert row["f1_new"] == (1, 0)  # -1.5 a token against -2
    row = scoring.row(doc("cola", 1), ["", [0, 1, -2.0], [0, 1, -2.5], [1, 1, -2.1]])  # asked token by token
    assert row["f1_new"] == (1, 1)
    assert "f1_new" not in scoring.row(doc("cola", 1), ["", [0, 0, -3.0], [1, 0, -2.0]])
    assert "f1_new" not in scoring.row(doc("cola", 1), [""])


@pytest.mark.parametrize("labels", [2, 4])
@pytest.mark.parametrize("seed", range(20))
def test_equal_to_scikit_learn(labels, seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    gold, predicted = rng.integers(0, labels, n), rng.integers(-1, labels, n)
    items = list(zip(gold.tolist(), predicted.tolist(), strict=True))
    assert figures.weighted_f1(items) == pytest.approx(
        f1_score(gold, predicted, average="weighted", zero_division=0), abs=1e-12
    )
    assert figures.class_mcc(items) == pytest.approx(matthews_corrcoef(gold, predicted), abs=1e-12)
    sums = figures.table(items).sum(axis=0)
    assert sums.sum() == n and figures.right(figures.table(items)).sum() == (gold == predicted).sum()


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("gold", [[0, 1, 0, 1, 1], [1, 1, 1], [0], [0, 1, 2, 3]])
@pytest.mark.parametrize("said", [-1, 0, 1, "right", "none but the first"])
def test_one_sided_predictions_too(gold, said):
    """Nothing that can be read, one word for all, everything right, one document."""
    predicted = {"right": gold, "none but the first": [gold[0], *[-1] * (len(gold) - 1)]}.get(said, [said] * len(gold))
    items = list(zip(gold, predicted, strict=True))
    expected = f1_score(gold, predicted, average="weighted", zero_division=0)
    assert figures.weighted_f1(items) == figures.likelier_f1(items) == pytest.approx(expected, abs=1e-12)
    assert figures.class_mcc(items) == pytest.approx(matthews_corrcoef(gold, predicted), abs=1e-12)


def test_what_is_no_label_is_refused():
    for items in ([(4, 0)], [(0, 4)], [(-1, 0)], [(0.5, 0)]):
        with pytest.raises(ValueError):
            figures.table(items)


@pytest.mark.parametrize("figure", ["weighted_f1", "class_mcc", "likelier_f1"])
def test_standard_errors(figure):
    """The bootstrap's against a plain one, document by document."""
    rng = np.random.default_rng(3)
    items = [(int(g), int(g if rng.random() < 0.7 else rng.integers(-1, 2))) for g in rng.integers(0, 2, 80)]
    value = getattr(figures, figure)
    plain = np.std([value([items[i] for i in rng.integers(0, 80, 80)]) for _ in range(600)], ddof=1)
    stderr = getattr(figures, f"{figure}_stderr")
    numbered = [(place, *item) for place, item in enumerate(items)]
    assert stderr(numbered) == pytest.approx(plain, rel=0.15)
    assert stderr(numbered[1::2] + numbered[::2]) == stderr(numbered)  # as two processes bring them
    assert np.isnan(stderr(numbered[:1]))


@pytest.mark.parametrize("task", TASKS)
def test_the_counts(task):
    made = doc(task)
    word = TASKS[task].words[made["label"]]
    for output, counts in (
        (f" {word}\n", (1, 0, 0)),
        ("", (0, 0, 1)),
        (f" {TASKS[task].words[1 - made['label']]}\n", (0, 1, 0)),
    ):
        row = scoring.row(made, [output])
        assert (row["correct"], row["incorrect"], row["invalid"]) == counts
