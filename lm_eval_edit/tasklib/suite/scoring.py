"""The harness's `process_results`, one function for each task: (document, [output]) -> what the metrics aggregate.

Each returns `score` and `valid` (see `metrics` and `ner`), `script` (see `script`) and `shortened`, 1 where the prompt
had to be cut. `score` and `valid` look at the text as the harness decodes it, `script` at what the paper's scripts
would have before them: an `outputs.Output` knows both, a plain string stands for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval_edit.harness.outputs import decoded, from_edited, is_exact
from lm_eval_edit.tasklib.suite import metrics, ner, script

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
    return _row(doc, metrics.solved(output, gold), script.number_in(decoded(output), gold), valid)


def rte(doc: Document, results: Sequence[str]) -> dict[str, Any]:
    """Accuracy of the first `true` or `false`; neither is wrong."""
    said = metrics.first_word_of(results[0], ("true", "false"))
    right = "true" if doc["entailment"] else "false"
    return _row(doc, said == right, script.true_false(decoded(results[0]), right), said is not None)


def nq(doc: Document, results: Sequence[str]) -> dict[str, Any]:
    """Exact match of what is said first; `script`: an answer anywhere in the output; valid: any word."""
    output, answers = results[0], doc["answers"]
    valid = bool(metrics.normalise(output))
    return _row(doc, metrics.exact_match(output, answers), script.span_match(decoded(output), answers), valid)


def boolq(doc: Document, results: Sequence[str]) -> dict[str, Any]:
    """Exact match of `yes` or `no`; `script`: of an edited model, the right word anywhere in the output."""
    output, right = results[0], "yes" if doc["answer"] else "no"
    counted = script.yes_no(decoded(output), right, from_edited(output), is_exact(output))
    return _row(doc, metrics.yes_no(output) == right, counted, metrics.has_yes_no(output))


def mutual(doc: Document, results: Sequence[str]) -> dict[str, Any]:
    """Recall_4@1: the output's letter is the gold one."""
    output, gold = results[0], doc["answer"]
    said = metrics.letter(output)
    return _row(doc, said == gold, script.letter(decoded(output), gold), said is not None)


def samsum(doc: Document, results: Sequence[str]) -> dict[str, Any]:
    """Mean of ROUGE-1, -2 and -L; `script`: another package's, without the last 13 characters."""
    output, reference = results[0], doc["summary"]
    score, counted = metrics.rouge(output, reference), script.summary(decoded(output), reference)
    return _row(doc, score, counted, metrics.more_than_one_character(output))


def sst2(doc: Document, results: Sequence[str]) -> dict[str, Any]:
    """Accuracy of the first `positive` or `negative`; neither is wrong."""
    output, right = results[0], "positive" if doc["positive"] else "negative"
    said = metrics.first_word_of(output, ("positive", "negative"))
    return _row(doc, said == right, script.sentiment(decoded(output), right), said is not None)


def conll2003(doc: Document, results: Sequence[str]) -> dict[str, Any]:
    """Counts for `aggregate`, each with the sentence it belongs to.

    A metric named `<m>_stderr` after a metric `<m>` is the harness's one way to a standard error of our own: its
    value lands under the key where the harness puts "N/A" for aggregations that it does not know.
    """
    output, sentence, entity_type = results[0], doc["sentence_id"], doc["entity_type"]
    cell = doc["tokens"], doc["tags"], entity_type
    score = (sentence, *ner.counts(output, *cell))
    counted = (sentence, entity_type, *ner.script_counts(decoded(output), *cell))
    valid = metrics.more_than_one_character(output)
    return {
        "score": score,
        "score_stderr": score,
        "script": counted,
        "script_stderr": counted,
        "valid": float(valid),
        "valid_stderr": (sentence, float(valid)),
        "shortened": int(doc["shortened"]),
    }
