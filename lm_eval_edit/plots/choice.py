"""What of a sweep is drawn: tasks, metric, series, and the paper's values beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_eval_edit.comparison.floors import AT_FLOOR, floors
from lm_eval_edit.comparison.results import load_run
from lm_eval_edit.errors import ConfigurationError, UserError, nearest
from lm_eval_edit.plots.series import MEAN, Measure, Series, about_edits, all_series, mean_score, score, unique
from lm_eval_edit.sweep.reading import DONE, PREFIX, CellData, Sweep

MOST_TASKS = 13  # with more lines in one panel, no one could follow them


@dataclass(frozen=True)
class Choice:
    """What is drawn.

    Attributes:
        tasks: What is drawn; the first `MOST_TASKS` of them have a line.
        averaged: What means are over: those of them that measure ability, never mixed with those about the edits; all
            of them where all are about the edits.
        published: The paper's values, as a preset has them: metric, source, n_edits, tasks. Empty without.
        published_method: The editor that the published edited points are of, in small letters; None where the design
            does not say.
        notices: What was left out, one sentence each.
        floors: Folder of an unedited model -> task -> why it cannot show damage.
    """

    sweep: Sweep
    series: tuple[Series, ...]
    tasks: tuple[str, ...]
    metric: str
    published: Mapping[str, Any]
    published_method: str | None
    notices: tuple[str, ...] = ()
    floors: Mapping[Path, Mapping[str, str]] = field(default_factory=dict)

    @cached_property
    def averaged(self) -> tuple[str, ...]:
        """See the class."""
        apart = about_edits(self.sweep)
        return tuple(task for task in self.tasks if task not in apart) or self.tasks

    def at_floor(self, series: Iterable[Series]) -> list[str]:
        """A sentence for pictures that show tasks which the unedited model cannot do; nothing without such tasks."""
        low = {task for one in series for task in self.floors.get(one.first.baseline.folder, ())}
        names = ", ".join(self.short(task) for task in self.tasks if task in low)
        return [f"{AT_FLOOR}: {names}"] if names else []

    def said(self, series: Iterable[Series]) -> list[str]:
        """Sentences for pictures of the metric itself: that a lower one is better, and `at_floor`."""
        series = list(series)
        found = {
            value.higher_is_better
            for one in series
            for task in self.tasks
            if (value := one.first.baseline.value(task, self.metric)) is not None
        }
        return (["lower is better"] if found == {False} else []) + self.at_floor(series)

    def short(self, task: str) -> str:
        """A task's name in a picture."""
        return self.sweep.short(task)

    @property
    def shown(self) -> tuple[str, ...]:
        """The tasks that have a line."""
        return self.tasks[:MOST_TASKS]

    def measures(self) -> dict[str, Measure]:
        """What a panel with all tasks shows, by name: the tasks and, of several, their mean."""
        found = {self.short(task): score(task, self.metric) for task in self.shown}
        return found | ({MEAN: mean_score(self.averaged, self.metric)} if len(self.averaged) > 1 else {})

    def published_of(self, series: Series) -> dict[str, list[tuple[int, float]]]:
        """Task -> (n_edits, value): the unedited model's, and the edited models' if the series is of their method."""
        counts = self.published.get("n_edits") or []
        mine = self.published_method in (None, series.first.editor.lower())
        points = {
            task: [(n, value) for n, value in zip(counts, values, strict=True) if n == 0 or mine]
            for task, values in (self.published.get("tasks") or {}).items()
            if task in self.shown
        }
        return {task: each for task, each in points.items() if each}

    def source(self, marks: str) -> str:
        """Whose the published values are, and of which metric if that is another one."""
        theirs = str(self.published.get("metric", self.metric))
        other = "" if theirs == self.metric else f" (of {theirs}, not {self.metric})"
        return f"{marks}: {self.published.get('source', 'published values')}{other}"

    def by_where(self) -> dict[str, list[Series]]:
        """Series of the same model and data set; key for a file's name."""
        groups: dict[str, list[Series]] = {}
        for series in self.series:
            groups.setdefault(series.where_name, []).append(series)
        return groups


def choose(sweep: Sweep, tasks: Sequence[str] | None = None, metric: str | None = None) -> tuple[Choice, ...]:
    """What of a sweep to draw: one choice for each metric, since values of different metrics share no axis.

    Args:
        tasks: Names of tasks and groups; by default all tasks but those about the edits themselves, which are drawn
            only in a sweep that has no others.
        metric: As in the results; by default each task's headline metric.

    Raises:
        UserError: no cell is finished yet.
        ConfigurationError: a task or metric that no cell has.
    """
    cells = [cell for _, cell in sweep.cells() if cell.status == DONE]
    series = tuple(all_series(sweep))
    if not cells or not series:
        raise UserError(
            f"{sweep.root} holds no finished cell of an edited model; run `lm-eval-edit sweep` with this folder again"
        )
    known = sweep.tasks()
    have = {task: unique(m for cell in cells for m in cell.metrics(task)) for task in [*known, *sweep.groups()]}
    apart = about_edits(sweep)
    mine = [task for task in known if task not in apart] or known
    named, problems = _named(tasks or (), have, metric)
    problems += _metric_problems(metric, {task: have[task] for task in known}, () if named else mine)
    header = sweep.header.get("published") or {}
    counts = header.get("n_edits") or []
    for task, values in (header.get("tasks") or {}).items():
        if len(values) != len(counts):
            problems.append(f"published: {task} has {len(values)} values for {len(counts)} n_edits; mend the design")
    if problems:
        raise ConfigurationError(problems)
    together: dict[str, list[str]] = {}
    for task in _members(sweep, named) if named else mine:
        if (its := metric or _headline(cells, task)) in have[task]:
            together.setdefault(its, []).append(task)
    figure = str((sweep.header.get("figure") or {}).get("panel") or "")
    method = figure.split(",")[0].strip().lower() or None
    without = [task for task in known if not named and metric and metric not in have[task]]
    notices = [f"{', '.join(without)}: no metric {metric}; --metric draws another"] if without else []
    return tuple(
        Choice(sweep, series, tuple(chosen), its, header, method, (*notices, *_too_many(chosen)), _floors(series, its))
        for its, chosen in (together or {"": []}).items()
    )


def _floors(series: Iterable[Series], metric: str) -> dict[Path, dict[str, str]]:
    """Of each unedited model the tasks that it cannot do; nothing of one whose samples were not kept."""
    found: dict[Path, dict[str, str]] = {}
    for one in series:
        cell = one.first.baseline
        if cell.folder in found or cell.results_file is None:
            continue
        try:
            found[cell.folder] = floors(load_run(cell.results_file), metric=metric.partition(",")[0])
        except UserError:  # drawn all the same: a picture needs no samples
            found[cell.folder] = {}
    return found


def _named(
    tasks: Iterable[str], have: Mapping[str, Sequence[str]], metric: str | None
) -> tuple[list[str], list[str]]:  # fmt: skip
    """Tasks and groups as the results call them, and what is wrong with them."""
    named, problems = [], []
    metrics = {name for names in have.values() for name in names}
    for name in tasks:
        if name not in have and PREFIX + name in have:
            name = PREFIX + name
        if name not in have:
            problems.append(f"--tasks {name}: not in this sweep.{nearest(name, have)} Known are {', '.join(have)}")
        elif metric in metrics and metric not in have[name]:
            problems.append(f"--tasks {name}: it has no {metric}; it has {', '.join(have[name])}")
        named.append(name)
    return named, problems


def _metric_problems(metric: str | None, have: Mapping[str, Sequence[str]], mine: Sequence[str]) -> list[str]:
    """What is wrong with a metric: that no task has it, or, of those that would be drawn by default, none."""
    if metric is None:
        return []
    metrics = unique(name for names in have.values() for name in names)
    if metric not in metrics:
        known = ", ".join(metrics) or "none"
        return [f"--metric {metric}: no cell has it.{nearest(metric, metrics)} Known are {known}"]
    if mine and not any(metric in have[task] for task in mine):
        owners = ",".join(task for task in have if metric in have[task])
        others = ", ".join(unique(name for task in mine for name in have[task]))
        drawn = f"--tasks {owners} draws them. The others have {others}"
        return [f"--metric {metric}: only tasks about the edits have it; {drawn}"]
    return []


def _headline(cells: Iterable[CellData], task: str) -> str | None:
    return next((metric for cell in cells if (metric := cell.headline(task)) is not None), None)


def _too_many(tasks: Sequence[str]) -> list[str]:
    if len(tasks) <= MOST_TASKS:
        return []
    return [f"{len(tasks)} tasks: the first {MOST_TASKS} have a line, the mean is over all; see --tasks"]


def _members(sweep: Sweep, names: Sequence[str]) -> list[str]:
    """Tasks named, groups replaced by their tasks where the results say which."""
    members: dict[str, list[str]] = {}
    for _, cell in sweep.cells():
        members.update(cell.results.get("group_subtasks") or {})
    found: list[str] = []
    for name in names:
        found += _members(sweep, members[name]) if members.get(name) else [name]
    return unique(found)
