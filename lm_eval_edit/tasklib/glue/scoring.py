"""The harness's `process_results`: (document, responses) -> what the metrics aggregate.

    score   the right answer comes first, as a word of its own: accuracy
    script  the published weighted F1: labels and readings are those of the published scripts, RTE's inverted ones too
    f1_new  the same of the likelier label word
    mcc     Matthews' correlation of the same labels and readings as `script`
    correct, incorrect, invalid  how many readings of `script` are the label, another, or none
    valid   an answer can be read at all
    shortened  the prompt had to be cut

A metric named `<m>_stderr` after a metric `<m>` is the harness's one way to a standard error of our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval_edit.tasklib.glue import answers, prompts
from lm_eval_edit.tasklib.glue.figures import NONE

Document = dict[str, Any]


def row(doc: Document, results: Sequence[Any]) -> dict[str, Any]:
    """The metrics of one document.

    Args:
        doc: Of `sources.load`.
        results: The output, then [label, tokens, log-probability] of each label word or part of it, tokens 0 where
            that is not known.

    Returns:
        Without `f1_new` where the label words were not asked, or their tokens are not known.
    """
    task, output = doc["task"], str(results[0])
    said = answers.said(task, output)
    read = answers.script(task, getattr(prompts, task)(doc), output)
    found = {
        "score": float(said == doc["gold"]),
        "valid": float(said is not None),
        **_labels("script", doc, read),
        **_labels("mcc", doc, read),
        "correct": int(read == doc["label"]),
        "incorrect": int(read is not None and read != doc["label"]),
        "invalid": int(read is None),
        "shortened": int(doc["shortened"]),
    }
    if per_token := _per_token(results[1:]):
        found |= _labels("f1_new", doc, answers.likelier(per_token))
    return found


def _per_token(words: Sequence[Any]) -> list[float]:
    """Mean log-probability per token of each label's word; empty where the words were not asked, or not counted."""
    log_probs: dict[int, float] = {}
    counts: dict[int, int] = {}
    for label, tokens, log_prob in words:
        if tokens < 1:
            return []
        log_probs[label] = log_probs.get(label, 0.0) + float(log_prob)
        counts[label] = counts.get(label, 0) + tokens
    return [log_probs[label] / counts[label] for label in sorted(log_probs)]


def _labels(metric: str, doc: Document, predicted: int | None) -> dict[str, Any]:
    pair = (doc["label"], NONE if predicted is None else predicted)
    return {metric: pair, f"{metric}_stderr": (doc["item"], *pair)}
