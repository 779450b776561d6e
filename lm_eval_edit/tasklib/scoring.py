"""The harness's `process_results`, one function for each task: (document, [output]) -> what the metrics aggregate.

Each returns `score`, `script`, `valid` (see `metrics` and `ner`) and `shortened`, 1 where the prompt had to be cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval_edit.tasklib import metrics, ner

Document = dict[str, Any]


def _row(doc: Document, score: float, script: float, valid: bool) -> dict[str, Any]:
    return {
        "score": float(score),
        "script": float(script),
        "valid": float(valid),
        "shortened": int(doc["shortened"]),
    }


def gsm8k(doc: Document, results: Sequence[str]) -> dict[str, Any]:
    """Solve rate; `script`: the gold string is a substring of the output; valid: a number."""
    output, gold = results[0], doc["answer"]
    valid = metrics.first_number(output) is not None
    return _row(doc, metrics.solved(output, gold), gold in output, valid)


def rte(doc: Document, results: Sequence[str]) -> dict[str, Any]:
    """Accuracy of the first `true` or `false`; neither is wrong."""
    said = metrics.first_word_of(results[0], ("true", "false"))
    right = said == ("true" if doc["entailment"] else "false")
    return _row(doc, right, right, said is not None)


def nq(doc: Document, results: Sequence[str]) -> dict[str, Any]:
    """Exact match of what is said first; `script`: an answer anywhere in the output; valid: any word."""
    output, answers = results[0], doc["answers"]
    valid = bool(metrics.normalise(output))
    return _row(doc, metrics.exact_match(output, answers), metrics.span_match(output, answers), valid)


def boolq(doc: Document, results: Sequence[str]) -> dict[str, Any]:
    """Exact match of `yes` or `no`."""
    right = metrics.yes_no(results[0]) == ("yes" if doc["answer"] else "no")
    return _row(doc, right, right, metrics.has_yes_no(results[0]))


def mutual(doc: Document, results: Sequence[str]) -> dict[str, Any]:
    """Recall_4@1: the output's letter is the gold one."""
    said = metrics.letter(results[0])
    return _row(doc, said == doc["answer"], metrics.letter_script(results[0], doc["answer"]), said is not None)


def samsum(doc: Document, results: Sequence[str]) -> dict[str, Any]:
    """Mean of ROUGE-1, -2 and -L; `script`: the same without the last 13 characters."""
    output, summary = results[0], doc["summary"]
    score, script = metrics.rouge(output, summary), metrics.rouge_script(output, summary)
    return _row(doc, score, script, metrics.more_than_one_character(output))


def sst2(doc: Document, results: Sequence[str]) -> dict[str, Any]:
    """Accuracy of the first `positive` or `negative`; neither is wrong."""
    said = metrics.first_word_of(results[0], ("positive", "negative"))
    right = said == ("positive" if doc["positive"] else "negative")
    return _row(doc, right, right, said is not None)


def conll2003(doc: Document, results: Sequence[str]) -> dict[str, Any]:
    """Counts for `aggregate`, each with the sentence it belongs to.

    A metric named `<m>_stderr` after a metric `<m>` is the harness's one way to a standard error of our own: its
    value lands under the key where the harness puts "N/A" for aggregations that it does not know.
    """
    output, sentence, entity_type = results[0], doc["sentence_id"], doc["entity_type"]
    cell = doc["tokens"], doc["tags"], entity_type
    score = (sentence, *ner.counts(output, *cell))
    script = (sentence, entity_type, *ner.script_counts(output, *cell))
    valid = metrics.more_than_one_character(output)
    return {
        "score": score,
        "score_stderr": score,
        "script": script,
        "script_stderr": script,
        "valid": float(valid),
        "valid_stderr": (sentence, float(valid)),
        "shortened": int(doc["shortened"]),
    }
