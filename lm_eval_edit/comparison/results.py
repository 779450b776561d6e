"""Results of lm-eval as values: what each document scored, what it was, and how it may be paired with another run's.

Reads what `lm_eval --output_path FOLDER --log_samples` writes (0.4.12 and 0.4.13; one layout, in which 0.4.12 counts
`n-samples` by the last metric alone), made by any model on any tasks, and the frozen baselines of `baseline.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_edit._support.files import read_json
from lm_eval_edit.comparison.logged_metrics import Metric, read_metrics, with_chance
from lm_eval_edit.errors import UserError
from lm_eval_edit.harness.samples import responses as logged_responses
from lm_eval_edit.tasklib import measures
from lm_eval_edit.tasklib.editing import metrics as editing_metrics

DATE = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?"
_DATED = re.compile(rf"(?P<stem>.+)_(?P<date>{DATE})\.json")
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
HASHES = ("doc_hash", "prompt_hash", "target_hash")


@dataclass(frozen=True)
class TaskSamples:
    """The documents of one task under one filter, in the order of their ids.

    Attributes:
        doc_id: (n,) int64.
        hashes: `doc_hash`, `prompt_hash`, `target_hash` -> (n,) uint64, the first 64 bits of the logged sha256.
        answers: (n,) uint64, a hash of what was scored: the text, or which choice was the likeliest.
        clusters: (n,) integers from 0; documents that share a passage, sentence or dialogue have the same.
        cluster_field: What they share; None where every document stands alone.
        metrics: By name, the headline metric first.
        left_out: Metric -> why it cannot be compared.
        file, offsets: The samples file and where in it each document's line begins; None for frozen baselines.
        headline: The metric that stands for the task, the first in its YAML, whether or not it is among `metrics`; None
            where the results do not say.
        measures: `ability` or `edit_quality`.
        facts: (n,) uint64, a hash of the edited fact that a document is about, the same in every task; None for other
            tasks and frozen baselines.
    """

    task: str
    filter: str
    doc_id: np.ndarray
    hashes: Mapping[str, np.ndarray]
    answers: np.ndarray
    clusters: np.ndarray
    cluster_field: str | None
    metrics: Mapping[str, Metric]
    left_out: Mapping[str, str] = field(default_factory=dict)
    file: Path | None = None
    offsets: np.ndarray | None = None
    facts: np.ndarray | None = None
    headline: str | None = None
    measures: str = measures.ABILITY

    def __len__(self) -> int:
        return len(self.doc_id)

    def line(self, row: int) -> dict[str, Any]:
        """The logged sample of one document, read again from its file."""
        if self.file is None or self.offsets is None:
            raise UserError(f"{self.task}: a frozen baseline holds no texts; give the results folder it was made from")
        with self.file.open("rb") as file:
            file.seek(int(self.offsets[row]))
            return json.loads(file.readline())


@dataclass(frozen=True)
class Run:
    """One run of the harness.

    Attributes:
        path: Where it was read from.
        results: The results file without samples; for a frozen baseline what was kept of it.
        samples: (task, filter) -> its documents, in the order of the results.
        notices: What the reader should know: other files in the folder, tasks without samples.
    """

    path: Path
    results: Mapping[str, Any]
    samples: Mapping[tuple[str, str], TaskSamples]
    notices: tuple[str, ...] = ()

    @property
    def tasks(self) -> list[str]:
        """The tasks with samples."""
        return list(dict.fromkeys(task for task, _ in self.samples))

    @property
    def edit(self) -> Mapping[str, Any]:
        """What `edited_hf` recorded of its edits; empty for other models."""
        return (self.results.get("config") or {}).get("edit") or {}

    @property
    def label(self) -> str:
        """A few words for tables."""
        edit = self.edit
        if not edit:
            return f"{self.results.get('model_name') or self.results.get('model_source') or self.path.stem}"
        if not edit.get("n_edits"):
            return "unedited"
        seed = edit.get("edit_seed")
        return f"{edit['editor']} n={edit['n_edits']}" + (f" seed={seed}" if seed is not None else "")


# --------------------------------------------------------------------------------------------------- finding the files


def find_results(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The results file that `path` means: itself, or the newest below a folder.

    Raises:
        UserError: nothing there, or a folder that holds the results of several models.
    """
    if path.is_file():
        return path, ()
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; give a results_*.json of lm_eval or a folder with one")
    dated = [(found["date"], file) for file in path.rglob("*.json") if (found := _DATED.fullmatch(file.name))]
    dated = [(date, file) for date, file in dated if not file.name.startswith("samples_")]
    if not dated:
        raise UserError(f"{path} holds no results_*.json; run lm_eval with --output_path {path} --log_samples")
    folders = sorted({str(file.parent.relative_to(path)) for _, file in dated})
    if len(folders) > 1:
        raise UserError(f"{path} holds results of {len(folders)} models ({', '.join(folders[:4])}); name one of them")
    newest = max(dated)[1]
    if len(dated) == 1:
        return newest, ()
    return newest, (f"{path} holds {len(dated)} results files; the newest is taken: {newest.name}",)


def _samples_files(results_file: Path, tasks: Iterable[str]) -> dict[str, Path]:
    """The samples file of each task that has one."""
    dated = _DATED.fullmatch(results_file.name)
    found: dict[str, Path] = {}
    for task in tasks:
        if dated:
            file = results_file.parent / f"samples_{task}_{dated['date']}.jsonl"
            files = [file] if file.is_file() else []
        else:  # renamed by its owner, so the date is of no help
            pattern = re.compile(rf"samples_{re.escape(task)}_{DATE}\.jsonl")
            files = [file for file in results_file.parent.iterdir() if pattern.fullmatch(file.name)]
        if len(files) > 1:
            raise UserError(
                f"{results_file} has no date in its name and {len(files)} samples files of {task} beside it; keep the "
                f"name that lm_eval gave it, or leave one"
            )
        if files:
            found[task] = files[0]
    return found


# ------------------------------------------------------------------------------------------------------------- reading


def load_run(path: str | Path, *, cluster: str | None = None) -> Run:
    """Read a run's results and samples, or a frozen baseline.

    Args:
        path: A results file, a folder that holds one or several, or a frozen baseline.
        cluster: The field that documents of a cluster share, instead of the known ones; "none" for no clusters.

    Raises:
        UserError: no results, no samples, or samples that are broken or incomplete.
    """
    from lm_eval_edit.comparison import baseline  # it needs the values of this module

    file, notices = find_results(Path(path))
    results = read_json(file)
    if baseline.is_frozen(results):
        return baseline.thaw(results, file)
    if not isinstance(results, dict) or not isinstance(results.get("results"), dict):
        raise UserError(f"{file} is no results file of lm_eval: it has no 'results'")
    results.pop("samples", None)
    tasks = [name for name in results["results"] if name in (results.get("configs") or {})]
    files = _samples_files(file, tasks)
    if not files:
        raise UserError(f"{file} has no samples_*.jsonl beside it; run lm_eval with --log_samples")
    if missing := [task for task in tasks if task not in files]:
        raise UserError(f"{file}: the samples of {', '.join(missing)} are missing; were files moved or deleted?")
    samples = {}
    for task, samples_file in files.items():
        for found in read_samples(samples_file, task, results, cluster):
            samples[task, found.filter] = found
    return Run(file, results, samples, notices)


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
        for name, column in self.hashes.items():
            column.append(int(sample[name][:16], 16))
        self.answers.append(_answer_hash(logged_responses(sample.get("filtered_resps"))))
        self.offsets.append(offset)
        self.requests.append(len(sample.get("arguments") or ()))
        for name, column in self.values.items():
            column.append(sample.get(name))
        for name, ids in self.shared.items():
            value = doc.get(name)
            if value in (None, ""):
                key = ("alone", len(self.doc_id) - 1)
            else:
                key = value if isinstance(value, str | int) else json.dumps(value)
            self.clusters[name].append(ids.setdefault(key, len(ids)))


def _answer_hash(responses: Any) -> int:
    """A hash of what was said, the same where only the last digits of log-likelihoods differ.

    Choices are logged as [log-likelihood, is greedy]; what counts is which is the likeliest. A lone log-likelihood
    counts to six digits. Of the edit-quality tasks' [role, tokens, response] the words and the greedy flags count.
    """
    if editing_metrics.is_labelled(responses):
        content = json.dumps(editing_metrics.answer(responses))
    elif isinstance(responses, list) and len(responses) == 1 and isinstance(responses[0], str):
        content = responses[0]
    elif isinstance(responses, list) and responses and all(_is_choice(each) for each in responses):
        values = [float(each[0]) for each in responses]
        greedy = [str(each[1]) for each in responses]
        content = json.dumps([int(np.argmax(values)) if len(values) > 1 else f"{values[0]:.6g}", greedy])
    else:
        content = json.dumps(responses)
    return _hash(content)


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
    return hashes[rows.clusters[FACT]][order]


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
