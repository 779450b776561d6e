"""The samples file of one task as values: hashes, answers, clusters and the metrics of every document."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_edit.comparison.logged_metrics import read_metrics, with_chance
from lm_eval_edit.comparison.runs import HASHES, TaskSamples
from lm_eval_edit.errors import UserError
from lm_eval_edit.harness.samples import responses as logged_responses
from lm_eval_edit.tasklib import measures
from lm_eval_edit.tasklib.editing import metrics as editing_metrics

# Fields that name what several documents share, the most specific first.
FACT = "fact_id"  # of the edit-quality tasks, whose documents are about the same facts
CLUSTER_FIELDS = (
    "sentence_id", "passage", "passage_id", "context", "article", "dialogue", "paragraph", "story", "premise",
    "sentence1", FACT,
)  # fmt: skip
_FIXED = frozenset((
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash", "prompt_hash",
    "target_hash",
))  # fmt: skip


class _Rows:
    """The samples of one filter while their file is read.

    Args:
        fields: Those that documents of a cluster may share, the first that groups them first.
    """

    def __init__(self, fields: Sequence[str]) -> None:
        self.fields = fields
        self.doc_id: list[int] = []
        self.hashes: dict[str, list[int]] = {name: [] for name in HASHES}
        self.answers: list[int] = []
        self.offsets: list[int] = []
        self.requests: list[int] = []
        self.values: dict[str, list[Any]] = {}
        self.shared: dict[str, dict[Any, int]] = {}
        self.clusters: dict[str, list[int]] = {}

    def add(self, sample: Mapping[str, Any], offset: int) -> None:
        doc = sample["doc"] if isinstance(sample.get("doc"), dict) else {}
        for name in self.fields:
            if name not in self.shared and doc.get(name) not in (None, ""):  # the documents before have none
                self.shared[name] = {("alone", number): number for number in range(len(self.doc_id))}
                self.clusters[name] = list(range(len(self.doc_id)))
        names = sample.get("metrics")  # not logged by the oldest versions
        for name in sorted(sample.keys() - _FIXED) if names is None else names:
            if name not in self.values:  # a task may leave a metric out of some documents
                self.values[name] = [None] * len(self.doc_id)
        self.doc_id.append(sample["doc_id"])
        for name, hashes in self.hashes.items():
            hashes.append(int(sample[name][:16], 16))
        self.answers.append(_answer_hash(logged_responses(sample.get("filtered_resps"))))
        self.offsets.append(offset)
        self.requests.append(len(sample.get("arguments") or ()))
        for name, column in self.values.items():
            column.append(sample.get(name))
        for name, ids in self.shared.items():
            value = doc.get(name)
            key: object
            if value in (None, ""):
                key = ("alone", len(self.doc_id) - 1)
            else:
                key = value if isinstance(value, str | int) else json.dumps(value)
            self.clusters[name].append(ids.setdefault(key, len(ids)))


def _answer_hash(responses: Any) -> int:
    """A hash of what was said, the same where only the last digits of log-likelihoods differ.

    Choices are logged as [log-likelihood, is greedy]; what counts is which is the likeliest. A lone log-likelihood
    counts to six digits. Of the edit-quality tasks' [role, tokens, response] the words and the greedy flags count; of a
    text with log-likelihoods beside it the text alone.
    """
    if editing_metrics.is_labelled(responses):
        content = json.dumps(editing_metrics.answer(responses))
    elif (text := said_in_words(responses)) is not None:
        content = text
    elif isinstance(responses, list) and responses and all(_is_choice(each) for each in responses):
        values = [float(each[0]) for each in responses]
        greedy = [str(each[1]) for each in responses]
        content = json.dumps([int(np.argmax(values)) if len(values) > 1 else f"{values[0]:.6g}", greedy])
    else:
        content = json.dumps(responses)
    return _hash(content)


def said_in_words(responses: Any) -> str | None:
    """The text that was generated: alone, or with log-likelihoods asked beside it; None where none was, or several."""
    if not isinstance(responses, list) or not responses or not isinstance(responses[0], str):
        return None
    return responses[0] if all(isinstance(each, list) for each in responses[1:]) else None


def _hash(content: str) -> int:
    return int.from_bytes(blake2b(content.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def _is_choice(response: Any) -> bool:
    return isinstance(response, list) and len(response) == 2 and str(response[1]) in ("True", "False", "0", "1")


def read_samples(
    file: Path, task: str, results: Mapping[str, Any], cluster: str | None = None
) -> Iterable[TaskSamples]:
    """The samples of one task, one value for each filter.

    Raises:
        UserError: a broken line, a document twice, or fewer documents than the results speak of.
    """
    fields = () if cluster == "none" else CLUSTER_FIELDS if cluster is None else (cluster,)
    by_filter: dict[str, _Rows] = {}
    offset = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    sample = json.loads(line.decode("utf-8", "surrogatepass"))
                    if (rows := by_filter.get(sample["filter"])) is None:
                        rows = by_filter[sample["filter"]] = _Rows(fields)
                    rows.add(sample, offset)
                except (ValueError, KeyError, TypeError) as error:
                    what = f"no {error}" if isinstance(error, KeyError) else str(error)
                    raise UserError(f"{file}, line {number}: not a sample of lm_eval ({what})") from None
            offset += len(line)
    if not by_filter:
        raise UserError(f"{file} is empty")
    config = (results.get("configs") or {}).get(task) or {}
    named = [entry.get("name") for entry in config.get("filter_list") or () if isinstance(entry, dict)]
    if lost := [name for name in named if isinstance(name, str) and name not in by_filter]:
        raise UserError(f"{file} is incomplete: it has no sample of filter {', '.join(lost)}")
    expected = ((results.get("n-samples") or {}).get(task) or {}).get("effective") or 0
    for name, rows in by_filter.items():
        if len(rows.doc_id) < expected:
            raise UserError(
                f"{file} is incomplete: {len(rows.doc_id)} documents of filter '{name}', the results count {expected}"
            )
        yield _finish(file, task, name, rows, results)


def _finish(file: Path, task: str, filter_name: str, rows: _Rows, results: Mapping[str, Any]) -> TaskSamples:
    order = np.argsort(np.array(rows.doc_id, dtype=np.int64), kind="stable")
    doc_id = np.array(rows.doc_id, dtype=np.int64)[order]
    if len(twice := doc_id[:-1][np.diff(doc_id) == 0]):
        raise UserError(f"{file}: document {twice[0]} is there twice under filter '{filter_name}'; two runs?")
    field_name, clusters = _choose_clusters(rows)
    config = (results.get("configs") or {}).get(task) or {}
    figures = _figures(results["results"].get(task) or {}, filter_name)
    better = (results.get("higher_is_better") or {}).get(task) or {}
    metrics, left_out = read_metrics(rows.values, config, figures, better, order)
    headline = measures.headline(config, (*rows.values, *figures))
    stated, counted = measures.stated_chance(task, config), measures.counted_chance(config, rows.requests)
    return TaskSamples(
        task=task,
        filter=filter_name,
        doc_id=doc_id,
        hashes={name: np.array(column, dtype=np.uint64)[order] for name, column in rows.hashes.items()},
        answers=np.array(rows.answers, dtype=np.uint64)[order],
        clusters=renumber(clusters[order]),
        cluster_field=field_name,
        metrics={
            name: with_chance(metric, is_headline=name == headline, stated=stated, counted=counted)
            for name, metric in metrics.items()
        },
        left_out=left_out,
        file=file,
        offsets=np.array(rows.offsets, dtype=np.int64)[order],
        facts=_facts(rows, order),
        headline=headline,
        measures=measures.measures(task, config),
    )


def _figures(reported: Mapping[str, Any], filter_name: str) -> dict[str, Any]:
    """Metric -> its figure under one filter."""
    parted = ((*key.rpartition(","), value) for key, value in reported.items() if "," in key)
    return {metric: value for metric, _, of, value in parted if of == filter_name}


def _facts(rows: _Rows, order: np.ndarray) -> np.ndarray | None:
    if FACT not in rows.shared:
        return None
    hashes = np.array([_hash(str(key)) for key in rows.shared[FACT]], dtype=np.uint64)
    facts: np.ndarray = hashes[rows.clusters[FACT]][order]
    return facts


def _choose_clusters(rows: _Rows) -> tuple[str | None, np.ndarray]:
    """The first field that groups documents. One value for all of them is an instruction, not a passage."""
    n = len(rows.doc_id)
    for name in rows.fields:
        if 1 < len(rows.shared.get(name, ())) < n:
            return name, np.array(rows.clusters[name])
    return None, np.arange(n)


def renumber(clusters: np.ndarray) -> np.ndarray:
    """The same clusters, numbered in the order in which they first come."""
    _, first, inverse = np.unique(clusters, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]
