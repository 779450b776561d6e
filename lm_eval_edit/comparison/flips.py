"""The documents that changed, with both outputs: what one reads to see *how* a model broke."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_edit._support.files import write_bytes
from lm_eval_edit.comparison.changed_documents import gains, is_binary, won
from lm_eval_edit.comparison.logged_samples import said_in_words
from lm_eval_edit.comparison.pairing import Pair
from lm_eval_edit.comparison.verdicts import Comparison
from lm_eval_edit.errors import UserError, nearest
from lm_eval_edit.harness.samples import responses as logged_responses
from lm_eval_edit.tasklib.editing import metrics as editing_metrics

SILENT = "silent"  # fewer errors, because nothing is said


def write_flips(comparison: Comparison, file: Path, metric: str | None = None) -> int:
    """Write every document whose headline metric changed as JSONL and return how many there are.

    A line has task, filter, doc_id, metric, change (`right to wrong`, `wrong to right`, or `worse`, `better` where the
    metric is not 0/1; `silent` where a document does better only by saying nothing, see `compare.won`), the prompt, the
    target, and for `base` and `edited` the output, the logged value and `valid`.

    Args:
        metric: By this metric instead, of every task and filter that has it.

    Raises:
        UserError: no task has it.
    """
    if metric is None:
        chosen = {(row.task, row.filter): row.metric for row in comparison.rows if row.headline}
    else:
        chosen = {key: metric for key, pair in comparison.pairs.items() if metric in pair.metrics}
        known = sorted({name for pair in comparison.pairs.values() for name in pair.metrics})
        if not chosen:
            raise UserError(f"--metric {metric}: no task has it.{nearest(metric, known)} There are {', '.join(known)}")
    lines = [
        json.dumps(record, ensure_ascii=False)
        for key, name in chosen.items()
        for record in records(comparison.pairs[key], name)
    ]
    write_bytes(file, "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
    return len(lines)


def records(pair: Pair, metric: str, places: Iterable[int] | None = None) -> Iterator[dict[str, Any]]:
    """Documents before and after, read again from the samples: what `write_flips` writes.

    Args:
        places: Where they stand among the pair's documents; every document that changed by default.
    """
    before, after = pair.base.metrics[metric], pair.edited.metrics[metric]
    moved, winning = gains(before, after), won(pair, metric)
    words = ("right to wrong", "wrong to right") if is_binary(before, after) else ("worse", "better")
    for row in np.flatnonzero(moved).tolist() if places is None else places:
        base, edited = pair.base.line(row), pair.edited.line(row)
        yield {
            "task": pair.base.task,
            "filter": pair.base.filter,
            "doc_id": int(pair.base.doc_id[row]),
            "metric": metric,
            "change": words[int(moved[row] > 0)] if moved[row] <= 0 or winning[row] else SILENT,
            "prompt": prompt(base),
            "target": base.get("target"),
            "base": _side(base, metric),
            "edited": _side(edited, metric),
        }


def worsened(pair: Pair, metric: str) -> np.ndarray:
    """Where the documents stand that got worse: the largest losses first, equal ones in the order of their ids."""
    moved = gains(pair.base.metrics[metric], pair.edited.metrics[metric])
    order = np.argsort(moved, kind="stable")
    return order[moved[order] < 0]


def _side(sample: Mapping[str, Any], metric: str) -> dict[str, Any]:
    side = {"output": output(sample), "value": sample.get(metric)}
    return side | ({"valid": sample["valid"]} if "valid" in sample and metric != "valid" else {})


def prompt(sample: Mapping[str, Any]) -> Any:
    """What the model was given: the context of the first request."""
    return ((sample.get("arguments") or {}).get("gen_args_0") or {}).get("arg_0")


def output(sample: Mapping[str, Any]) -> Any:
    """What the model said: the text; for choices the likeliest continuation; else the filtered responses as logged."""
    responses = logged_responses(sample.get("filtered_resps"))
    arguments = sample.get("arguments") or {}
    if editing_metrics.is_labelled(responses):
        return editing_metrics.in_words(responses)
    if isinstance(responses, list) and len(responses) > 1 and all(isinstance(each, list) for each in responses):
        best = int(np.argmax([float(each[0]) for each in responses]))
        return (arguments.get(f"gen_args_{best}") or {}).get("arg_1", best)
    if (text := said_in_words(responses)) is not None:
        return text
    return responses[0] if isinstance(responses, list) and len(responses) == 1 else responses
