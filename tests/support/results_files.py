"""Results of lm-eval written by hand, in the layout of 0.4.12 and 0.4.13."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DATE = "2026-01-02T03-04-05.678901"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sample(doc_id: int, metrics: Mapping[str, Any], *, doc: Mapping[str, Any] | None = None, **changes: Any) -> dict:
    """One logged sample; `changes` replace what stands in it."""
    doc = dict(doc or {"question": f"Question {doc_id}?"})
    prompt = changes.pop("prompt", f"Q{doc_id}")
    answer = changes.pop("answer", " ".join(f"{value}" for value in metrics.values()))
    return {
        "doc_id": doc_id, "doc": doc, "target": "yes",
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {"until": []}}},
        "resps": [[answer]], "filtered_resps": [answer], "filter": "none", "metrics": list(metrics),
        "doc_hash": digest(json.dumps(doc)), "prompt_hash": digest(prompt), "target_hash": digest("yes"),
    } | dict(metrics) | changes  # fmt: skip


def samples(values: Sequence[float], metric: str = "acc", **changes: Any) -> list[dict]:
    """A sample for each value."""
    return [sample(i, {metric: value}, **changes) for i, value in enumerate(values)]


def write_run(
    folder: Path, tasks: Mapping[str, Sequence[dict]], *, aggregations: Mapping[str, str] | None = None,
    better: Mapping[str, bool] | None = None, date: str = DATE, version: str = "0.4.13", **changes: Any,
) -> Path:  # fmt: skip
    """Write a results file and its samples.

    Args:
        tasks: Task -> samples.
        aggregations: Metric -> its aggregation as dumped; "mean" without.
        better: Metric -> whether higher is better; True without.
        version: The harness's. 0.4.12 counts `n-samples` by the last metric.
        changes: Blocks of the results to merge in (`config={...}`), or to replace if they are no mappings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "results": {}, "group_subtasks": {}, "configs": {}, "versions": {}, "n-shot": {}, "higher_is_better": {},
        "n-samples": {}, "config": {"model": "hf", "model_args": {"pretrained": "some/model"}, "limit": None},
        "lm_eval_version": version, "model_source": "hf", "model_name": "some/model", "chat_template_sha": None,
    }  # fmt: skip
    for task, rows in tasks.items():
        names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
        figures: dict[str, Any] = {"name": task, "alias": task, "sample_len": len(rows)}
        for row_filter in dict.fromkeys(row["filter"] for row in rows):
            for name in names:
                values = [row[name] for row in rows if row["filter"] == row_filter and name in row]
                if all(isinstance(value, int | float) for value in values):
                    figures[f"{name},{row_filter}"] = float(np.mean(values))
                    figures[f"{name}_stderr,{row_filter}"] = "N/A"
        documents = len({row["doc_id"] for row in rows})
        results["results"][task] = figures
        results["configs"][task] = {
            "task": task, "output_type": "generate_until", "num_fewshot": 0, "repeats": 1,
            "generation_kwargs": {"until": [], "max_gen_toks": 5},
            "metric_list": [
                {"metric": name, "aggregation": (aggregations or {}).get(name, "mean")} for name in names
            ],
        }  # fmt: skip
        results["versions"][task] = 1.0
        results["n-shot"][task] = 0
        results["higher_is_better"][task] = {name: (better or {}).get(name, True) for name in names}
        effective = documents if version != "0.4.12" else sum(names[-1] in row for row in rows)
        results["n-samples"][task] = {"original": documents, "effective": effective}
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"samples_{task}_{date}.jsonl").write_text(lines)
    for key, value in changes.items():
        name = key.replace("n_", "n-")
        results[name] = merged(results.get(name), value)
    file = folder / f"results_{date}.json"
    file.write_text(json.dumps(results))
    return file


def merged(old: Any, new: Any) -> Any:
    """`new` over `old`, mapping by mapping."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {key: merged(old.get(key), new[key]) if key in new else old[key] for key in {**old, **new}}
    return new


def answers(n: int, wrong: int, seed: int = 0) -> list[float]:
    """n zeros and ones, `wrong` of them zeros at seeded places."""
    values = np.ones(n)
    values[np.random.default_rng(seed).permutation(n)[:wrong]] = 0
    return values.tolist()
