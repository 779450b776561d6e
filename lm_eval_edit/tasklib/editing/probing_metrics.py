"""Answers of `edithurt_probing` -> the metrics of a document; tasks/edithurt_probing/README.md defines each.

A response comes as [role, tokens, response], as in `editing.metrics`; the role says which prompt it is about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from lm_eval_edit.tasklib.editing.metrics import OTHER, SAYS, TARGET, Response, with_errors
from lm_eval_edit.tasklib.editing.probing import said
from lm_eval_edit.tasklib.editing.probing.documents import Document
from lm_eval_edit.tasklib.editing.probing.frames import LETTERS, NEW, OLD, WORDS

PLAIN = "plain"  # before a role: about the prompt that is not negated

#: Metrics of `negation` that only a fact with a known o has.
OF_OLD = ("prob_answered", "prob_negated", "answered_old", "shortcut_old")

Answers = dict[str, list[Any]]


def _by_role(results: Sequence[Response]) -> Answers:
    answers: Answers = {}
    for role, _, response in results:
        answers.setdefault(role, []).append(response)
    return answers


def _is_said(answers: Answers, role: str) -> bool:
    return all(is_greedy for _, is_greedy in answers[role])


def _log_prob(answers: Answers, role: str) -> float:
    return sum(log_prob for log_prob, _ in answers[role])


def negation(doc: Document, results: Sequence[Response]) -> dict[str, Any]:
    """`score` is 1 only where o* is the answer to the prompt and not to the negated one."""
    answers = _by_role(results)
    answered, negated = _is_said(answers, f"{PLAIN} {TARGET}"), _is_said(answers, TARGET)
    values: dict[str, float | None] = {
        "score": float(answered and not negated),
        "answered": float(answered),
        "negated": float(negated),
        "shortcut": float(answered and negated),
    } | dict.fromkeys(OF_OLD)
    if doc["other"] is not None:
        old = _is_said(answers, f"{PLAIN} {OTHER}")
        values |= {
            "prob_answered": _likelier(answers, f"{PLAIN} "),
            "prob_negated": _likelier(answers, ""),
            "answered_old": float(old),
            "shortcut_old": float(old and _is_said(answers, OTHER)),
        }
    return with_errors(doc["fact_id"], **values)


def _likelier(answers: Answers, before: str) -> float:
    return float(_log_prob(answers, f"{before}{TARGET}") > _log_prob(answers, f"{before}{OTHER}"))


def check_role(check: dict[str, str], which: str) -> str:
    """The role of an option of one of the eight questions."""
    return f"{check['about']} {check['form']} {check['order']} {which}"


def factcheck(doc: Document, results: Sequence[Response]) -> dict[str, Any]:
    """`score` is the balanced accuracy: a fact has as many statements that are true as false ones."""
    answers = _by_role(results)
    # log P(right option) − log P(wrong one), by (statement, form, order)
    margins = {
        (check["about"], check["form"], check["order"]): _log_prob(answers, check_role(check, TARGET))
        - _log_prob(answers, check_role(check, OTHER))
        for check in doc["checks"]
    }
    right = {key: _points(margin) for key, margin in margins.items()}
    # both orders of the options of each statement and form
    pairs = [
        [margins[key] for key in margins if key[:2] == (about, form)]
        for about in (NEW, OLD)
        for form in (WORDS, LETTERS)
    ]

    def mean_of(value: str) -> float:
        return fmean(points for key, points in right.items() if value in key[:2])

    return with_errors(
        doc["fact_id"],
        score=fmean(right.values()),
        true_new=mean_of(NEW),
        false_old=mean_of(OLD),
        words=mean_of(WORDS),
        letters=mean_of(LETTERS),
        consistent=fmean(float(min(pair) > 0 or max(pair) < 0) for pair in pairs),
        right_both=fmean(float(min(pair) > 0) for pair in pairs),
        # "True" for o* more readily than for o: the two margins are of True against False, and of False against True
        ranked=fmean(_points(margin + margins[(OLD, *key[1:])]) for key, margin in margins.items() if key[0] == NEW),
    )


def _points(margin: float) -> float:
    """1 for a margin above zero, one half for none, else 0; a model whose answers are no numbers has none right."""
    if math.isnan(margin):
        return 0.0
    return 0.5 if margin == 0 else float(margin > 0)


def wild(doc: Document, results: Sequence[Response]) -> dict[str, Any]:
    """`score` is `contains`; of what was said, the first sentence or line counts."""
    (text,) = _by_role(results)[SAYS]
    answers, old = doc["answers"], doc["old"]
    first = said.answer(text, answers + old)
    own = said.without_echo(first, (doc["prompt"], doc["subject"]), answers + old)
    new = said.contains(said.without_others(own, old, answers), answers, old)
    return with_errors(
        doc["fact_id"],
        score=float(new),
        contains=float(new),
        em=float(said.exact(first, answers, old)),
        old=float(not new and said.contains(own, old, answers)) if old else None,
        valid=float(said.is_said(first)),
    )
