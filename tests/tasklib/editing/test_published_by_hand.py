"""Published figures, worked out by hand."""

from __future__ import annotations

import math

import pytest

from lm_eval_edit.comparison.aggregations import AGGREGATIONS
from lm_eval_edit.tasklib.editing import figures, metrics


def test_sum_and_mean_disagree_where_one_object_has_more_tokens():
    """P(o*) = e^-3 of three tokens, P(o) = e^-2 of one: o is likelier, o* has the likelier tokens."""
    doc = {"fact_id": "7", "prompt": "p", "paraphrases": ["q"], "neighbourhood": ["n"]}
    new = [("target", -1.0, True)] * 3
    true = [("other", -2.0, False)]
    answers = [
        [f"{kind} 0 {role}", 1, (log_prob, greedy)]
        for kind in metrics.KINDS
        for role, log_prob, greedy in (*new, *true)
    ]
    row = metrics.counterfact(doc, answers)
    assert (row["es"], row["ps"], row["ns"]) == (0.0, 0.0, 1.0)
    assert (row["es_script"], row["ps_script"], row["ns_script"]) == (1.0, 1.0, 0.0)
    assert row["em_script"] == pytest.approx(math.exp(-1) - math.exp(-2)) == pytest.approx(-row["nm_script"])
    assert (row["es_acc"], row["ns_acc"]) == (1.0, 0.0)
    assert row["score_script"] == ("7", 1.0, 1.0, 0.0) == row["score_script_stderr"]
    equal = metrics.counterfact(doc, [[role, tokens, (-1.0, True)] for role, tokens, _ in answers])
    assert (equal["es_script"], equal["ns_script"]) == (0.0, 0.0), "strict"


def test_an_object_of_an_unknown_number_of_tokens_has_no_mean():
    doc = {"fact_id": "7", "prompt": "p", "paraphrases": ["q"], "neighbourhood": ["n"]}
    answers = [[f"{kind} 0 {role}", 0, (-1.0, True)] for kind in metrics.KINDS for role in metrics.ROLES[:2]]
    row = metrics.counterfact(doc, answers)
    assert row["es"] == 0.0 and all(row[name] is None for name in metrics.SCRIPT if name != "score_script")


def test_zsre_of_one_fact():
    doc = {"fact_id": "7", "prompt": "p", "paraphrases": ["q", "r"], "neighbourhood": ["n"]}
    answers = [
        ["efficacy 0 target", 1, (-1.0, True)], ["efficacy 0 target", 1, (-1.0, False)],
        ["paraphrase 0 target", 1, (-1.0, True)], ["paraphrase 0 target", 1, (-1.0, True)],
        ["paraphrase 1 target", 1, (-1.0, False)], ["paraphrase 1 target", 1, (-1.0, True)],
        ["neighbourhood 0 target", 1, (-1.0, False)],
    ]  # fmt: skip
    row = metrics.zsre(doc, answers)
    assert {name: row[name] for name in metrics.ZSRE} == {
        "es_token_acc": 0.5,
        "ps_token_acc": 0.75,
        "ns_token_acc": 0.0,
    }
    assert figures.counterfact_score([row["score"]]) == 0.0


def test_differences_of_probabilities_are_bounded_on_both_sides():
    from lm_eval_edit.comparison.logged_metrics import Metric

    found = AGGREGATIONS["signed_mean"]
    metric = Metric("em_script", found, found.counts([0.25, 0.5]))
    assert metric.value == figures.signed_mean([0.25, None, 0.5]) == 0.375 and metric.bounds == (-1.0, 1.0)
    assert math.isnan(figures.signed_mean([None]))
