"""Which documents of two runs are the same: all of them, or an error that says what differs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lm_eval_edit.comparison.runs import Run, TaskSamples
from lm_eval_edit.errors import UserError, nearest

# What makes two runs of a task different measurements, and what to call it.
_SETTINGS = {
    "output_type": "output type",
    "num_fewshot": "few-shot examples",
    "generation_kwargs": "generation settings",
    "repeats": "repeats",
    "filter_list": "filters",
}
# What may be behind prompts that differ.
_PROMPT_SETTINGS = {
    "chat_template_sha": "chat template",
    "system_instruction_sha": "system instruction",
    "fewshot_as_multiturn": "few-shot as turns",
}


class PairingError(UserError):
    """Two runs that are not measurements of the same documents.

    Args:
        problems: One sentence for each task or cause.
    """

    def __init__(self, base: Run, edited: Run, problems: Sequence[str]):
        self.problems = list(problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{base.path} and {edited.path} cannot be paired\n{lines}")


@dataclass(frozen=True)
class Pair:
    """One task under one filter, the same documents in the same order on both sides."""

    base: TaskSamples
    edited: TaskSamples

    @property
    def metrics(self) -> list[str]:
        """The metrics of both, the headline metric first."""
        return list(self.base.metrics)

    @property
    def headline(self) -> str | None:
        """The metric that stands for the task, comparable or not: its first.

        The edited run's word counts where the base, frozen by an earlier version, has none.
        """
        return self.base.headline or self.edited.headline

    def why_not(self, metric: str) -> str:
        """Why a metric is not among those of both."""
        sides = (("base", self.base), ("edited", self.edited))
        reasons = {
            side: samples.left_out.get(metric, "it is not in the results")
            for side, samples in sides
            if metric not in samples.metrics
        }
        if len(set(reasons.values())) == 1 and len(reasons) == 2:
            return next(iter(reasons.values()))
        return "; ".join(f"{reason} ({side})" for side, reason in reasons.items())

    def direction_known(self, metric: str) -> bool:
        """Whether either run says if higher is better."""
        return self.base.metrics[metric].direction_known or self.edited.metrics[metric].direction_known

    @property
    def answers_changed(self) -> np.ndarray:
        """(n,) whether the answers differ, be they right or wrong."""
        changed: np.ndarray = self.base.answers != self.edited.answers
        return changed

    @property
    def clustered(self) -> bool:
        """Whether documents share something, so that they are not independent."""
        return self.base.cluster_field is not None

    @property
    def n_clusters(self) -> int:
        """How many clusters there are; as many as documents where nothing is shared."""
        return int(self.base.clusters.max(initial=-1)) + 1


def pair_runs(
    base: Run, edited: Run, tasks: Sequence[str] | None = None, headlines: Mapping[str, str] | None = None
) -> dict[tuple[str, str], Pair]:
    """Pair two runs document by document.

    Args:
        base: The run before.
        edited: The run after.
        tasks: The tasks to compare; by default all, and both runs must have the same.
        headlines: Task -> the metric to take for its headline, instead of its own. Another metric with a value that is
            not finite, or that only one of the runs has, is left out.

    Returns:
        (task, filter) -> the pair, in the order of `base`.

    Raises:
        PairingError: tasks, versions, settings, documents, prompts or metrics differ, or a value is not finite.
        UserError: a task in `tasks` that no run has.
    """
    if tasks is not None:
        for task in tasks:
            if task not in (*base.tasks, *edited.tasks):
                raise UserError(f"no task {task} in {base.path}.{nearest(task, base.tasks)}")
    wanted = [key for key in base.samples if tasks is None or key[0] in tasks]
    there = [key for key in edited.samples if tasks is None or key[0] in tasks]
    problems = []
    for run, keys, others in ((base, wanted, there), (edited, there, wanted)):
        if alone := [_name(key) for key in keys if key not in others]:
            problems.append(f"only {run.path} has {', '.join(alone)}; to compare fewer tasks name them with --tasks")
    pairs = {
        key: _comparable(Pair(base.samples[key], edited.samples[key]), (headlines or {}).get(key[0]))
        for key in wanted
        if key in edited.samples
    }
    for key, pair in pairs.items():
        problems += [f"{_name(key)}: {text}" for text in _differences(key[0], pair, base, edited)]
    if problems:
        raise PairingError(base, edited, problems)
    return pairs


def _name(key: tuple[str, str]) -> str:
    return key[0] if key[1] == "none" else f"{key[0]} ({key[1]})"


def _get(run: Run, block: str, key: str) -> Any:
    return (run.results.get(block) or {}).get(key)


def _plain(value: Any) -> str:
    """A setting as text, without the addresses by which the harness dumps functions."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def _differences(task: str, pair: Pair, base: Run, edited: Run) -> list[str]:
    """What stands against pairing, the cause before what follows from it."""
    old, new = _get(base, "versions", task), _get(edited, "versions", task)
    if old != new:
        return [f"version {old} of the task against version {new}"]
    config, other = _get(base, "configs", task) or {}, _get(edited, "configs", task) or {}
    settings = [
        f"{what}: {config.get(key)} against {other.get(key)}"
        for key, what in _SETTINGS.items()
        if _plain(config.get(key)) != _plain(other.get(key))
    ]
    if settings:
        return settings
    return _other_documents(pair, base, edited) or _other_values(pair)


def _other_documents(pair: Pair, base: Run, edited: Run) -> list[str]:
    a, b = pair.base, pair.edited
    if not np.array_equal(a.doc_id, b.doc_id):
        limits = [_get(run, "config", "limit") for run in (base, edited)]
        limited = f" (limit: {limits[0]} against {limits[1]})" if limits[0] != limits[1] else ""
        common = len(np.intersect1d(a.doc_id, b.doc_id))
        return [f"{len(a)} documents against {len(b)}, {common} in common{limited}"]
    for name, what in (("doc_hash", "documents"), ("target_hash", "targets"), ("prompt_hash", "prompts")):
        other = a.hashes[name] != b.hashes[name]
        if other.any():
            why = _why_prompts(base, edited) if name == "prompt_hash" else ""
            first = int(a.doc_id[np.argmax(other)])
            return [f"the {what} of {other.sum()} of {len(a)} documents differ (first: doc_id {first}){why}"]
    if not np.array_equal(a.clusters, b.clusters):
        return ["the clusters differ; give the same --cluster when freezing and comparing"]
    return []


def _why_prompts(base: Run, edited: Run) -> str:
    causes = [what for key, what in _PROMPT_SETTINGS.items() if base.results.get(key) != edited.results.get(key)]
    seeds = [_get(run, "config", "fewshot_seed") for run in (base, edited)]
    if seeds[0] != seeds[1]:
        causes.append(f"few-shot seed ({seeds[0]} against {seeds[1]})")
    return f"; what differs between the runs: {', '.join(causes)}" if causes else ""


def _other_values(pair: Pair) -> list[str]:
    a, b = pair.base, pair.edited
    if a.metrics.keys() != b.metrics.keys():
        differing = sorted(a.metrics.keys() ^ b.metrics.keys())
        left_out = {**a.left_out, **b.left_out}
        reasons = [f"{name} ({left_out.get(name, 'absent')})" for name in differing]
        return [f"only one of the runs has metric {', '.join(reasons)}"]
    if a.headline and b.headline and a.headline != b.headline:
        return [f"the headline metric is {a.headline} of base and {b.headline} of edited"]
    problems = []
    for name, metric in a.metrics.items():
        other = b.metrics[name]
        if metric.higher_is_better != other.higher_is_better:
            problems.append(f"{name} is better when higher in one run and when lower in the other")
        if metric.aggregation.name != b.metrics[name].aggregation.name:
            problems.append(f"{name} is aggregated by {metric.aggregation.name} and {b.metrics[name].aggregation.name}")
        problems += _not_finite(pair, name)
    return problems


def _not_finite(pair: Pair, name: str) -> list[str]:
    problems = []
    for side, samples in (("base", pair.base), ("edited", pair.edited)):
        broken = ~np.isfinite(samples.metrics[name].counts).all(axis=1)
        if broken.any():
            first = int(samples.doc_id[np.argmax(broken)])
            problems.append(f"{name} of {side} is not finite on {broken.sum()} documents (first: doc_id {first})")
        elif not np.isfinite(value := samples.metrics[name].value):
            problems.append(f"{name} of {side} is {value}")
    return problems


def _comparable(pair: Pair, headline: str | None) -> Pair:
    """The pair without the metrics that are not finite or that one of the runs has, but for the task's own."""
    kept = headline or pair.headline
    left_out = {
        name: "; ".join(problems)
        for name in pair.base.metrics.keys() & pair.edited.metrics.keys()
        if kept not in (None, name) and (problems := _not_finite(pair, name))
    }
    if kept in pair.base.metrics and kept in pair.edited.metrics:  # what an unedited `hf` has no figure of, say
        for side, one, other in (("base", pair.base, pair.edited), ("edited", pair.edited, pair.base)):
            for name in one.metrics.keys() - other.metrics.keys():
                left_out[name] = other.left_out.get(name, f"only the {side} run has it")
    if not left_out:
        return pair
    sides = (
        replace(
            samples,
            metrics={name: metric for name, metric in samples.metrics.items() if name not in left_out},
            left_out={**samples.left_out, **left_out},
        )
        for samples in (pair.base, pair.edited)
    )
    return Pair(*sides)
