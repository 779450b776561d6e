"""Frozen baselines: one small file of a run's per-document results and hashes, to be reviewed and kept with the code.

It holds no text of prompts, documents or answers, so it may lie in a public repository even where the data may not. One
line for each document keeps the differences between two versions readable.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_edit._support.files import write_bytes
from lm_eval_edit.comparison.aggregations import AGGREGATIONS
from lm_eval_edit.comparison.logged_metrics import Metric, with_chance
from lm_eval_edit.comparison.runs import HASHES, Run, TaskSamples
from lm_eval_edit.errors import UserError
from lm_eval_edit.harness.engines import engine_of
from lm_eval_edit.tasklib import measures

FORMAT = "lm-eval-edit baseline"
VERSION = 1
_KEPT = (
    "model_source", "model_name", "lm_eval_version", "transformers_version", "date", "versions", "n-shot", "n-samples",
    "group_subtasks", "fewshot_as_multiturn", "chat_template_sha", "system_instruction_sha",
)  # fmt: skip
_KEPT_CONFIG = ("model", "engine", "model_dtype", "model_revision", "model_sha", "limit", "fewshot_seed")
_KEPT_TASK = ("output_type", "generation_kwargs", "num_fewshot", "repeats", "filter_list")


def freeze(run: Run, file: Path) -> None:
    """Write a run as a baseline file, atomically."""
    results = run.results
    config = results.get("config") or {}
    kept = {key: results[key] for key in _KEPT if results.get(key) is not None}
    kept["config"] = {key: config[key] for key in _KEPT_CONFIG if config.get(key) is not None}
    if (engine := engine_of(results)) is not None and engine_of(kept) != engine:  # told by what is not kept
        kept["config"]["engine"] = engine.record()
    configs = results.get("configs") or {}
    kept["configs"] = {
        task: {key: configs[task][key] for key in _KEPT_TASK if key in configs.get(task, {})} for task in run.tasks
    }
    kept["groups"] = {
        name: {key: value for key, value in figures.items() if isinstance(value, int | float)}
        for name, figures in (results.get("groups") or {}).items()
    }
    head = {"format": FORMAT, "version": VERSION, "results": kept}
    text = json.dumps(head, indent=1, ensure_ascii=False)[:-2] + ',\n "samples": [\n'
    text += ",\n".join(_frozen_samples(samples) for samples in run.samples.values())
    write_bytes(file, (text + "\n ]\n}\n").encode("utf-8", "backslashreplace"))


def _frozen_samples(samples: TaskSamples) -> str:
    metrics = [
        {
            "name": metric.name,
            "aggregation": metric.aggregation.name,
            "higher_is_better": metric.higher_is_better,
            "direction_known": metric.direction_known,
            "chance": metric.chance,
            "value": metric.value,
        }
        for metric in samples.metrics.values()
    ]
    head = {
        "task": samples.task,
        "filter": samples.filter,
        "cluster_field": samples.cluster_field,
        "measures": samples.measures,
        "headline": samples.headline,
        "left_out": dict(samples.left_out),
        "metrics": metrics,
        "columns": ["doc_id", *HASHES, "answer", "cluster", *samples.metrics],
    }
    rows = []
    for i in range(len(samples)):
        hashes = [f"{int(column[i]):016x}" for column in (*samples.hashes.values(), samples.answers)]
        values = [_shortest(metric.counts[i], metric.aggregation.is_mean) for metric in samples.metrics.values()]
        rows.append(json.dumps([int(samples.doc_id[i]), *hashes, int(samples.clusters[i]), *values]))
    return json.dumps(head, ensure_ascii=False)[:-1] + ', "rows": [\n' + ",\n".join(rows) + "\n]}"


def _shortest(counts: np.ndarray, is_mean: bool) -> Any:
    values = [int(value) if value.is_integer() else value for value in counts.tolist()]
    return values[0] if is_mean else values


def is_frozen(content: Any) -> bool:
    """Whether a JSON document is a frozen baseline."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def thaw(content: Mapping[str, Any], file: Path) -> Run:
    """A frozen baseline as a run, equal to the one it was made from but for the texts.

    Raises:
        UserError: a later format, or a file that was changed by hand into something that does not add up.
    """
    if content.get("version") != VERSION:
        raise UserError(
            f"{file} is a baseline of format {content.get('version')}, this version reads {VERSION}; freeze it again"
        )
    samples = {}
    try:
        for each in content["samples"]:
            found = _thawed_samples(each, file)
            samples[found.task, found.filter] = found
        results = dict(content["results"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{file} is a damaged baseline ({type(error).__name__}: {error}); freeze it again") from None
    results["results"] = {}
    return Run(file, results, samples)


def _thawed_samples(each: Mapping[str, Any], file: Path) -> TaskSamples:
    columns = list(zip(*each["rows"], strict=True))
    if len(columns) != 6 + len(each["metrics"]):
        raise ValueError(f"{each['task']} has {len(columns)} columns")
    metrics = {}
    for metric, column in zip(each["metrics"], columns[6:], strict=True):
        aggregation = AGGREGATIONS[metric["aggregation"]]
        counts = aggregation.counts(column) if aggregation.is_mean else np.array(column, dtype=float)
        value = aggregation.value(counts)
        if not np.isclose(value, metric["value"], rtol=1e-9, atol=1e-12, equal_nan=True):
            raise UserError(
                f"{file}: {each['task']} {metric['name']} is {metric['value']} in its head but {value} by its rows; "
                f"freeze it again"
            )
        known = metric.get("direction_known", True)
        read = Metric(metric["name"], aggregation, counts, metric["higher_is_better"], known)
        if "chance" in metric:
            metrics[read.name] = dataclasses.replace(read, chance=metric["chance"])
        else:  # frozen before that was kept
            stated = measures.stated_chance(each["task"], {})
            metrics[read.name] = with_chance(read, is_headline=not metrics, stated=stated, counted=None)
    hashes = [np.array([int(text, 16) for text in column], dtype=np.uint64) for column in columns[1:5]]
    return TaskSamples(
        task=each["task"],
        filter=each["filter"],
        doc_id=np.array(columns[0], dtype=np.int64),
        hashes=dict(zip(HASHES, hashes[:3], strict=True)),
        answers=hashes[3],
        clusters=np.array(columns[5], dtype=np.int64),
        cluster_field=each["cluster_field"],
        metrics=metrics,
        left_out=each.get("left_out") or {},
        headline=each.get("headline"),
        measures=each.get("measures") or measures.measures(each["task"], {}),
    )
