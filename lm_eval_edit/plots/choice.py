"""What of a sweep is drawn: tasks, metric, series, and the paper's values beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_edit.errors import ConfigurationError, UserError, nearest
from lm_eval_edit.plots.series import EDITING, MEAN, Measure, Series, all_series, mean_score, score, short, unique
from lm_eval_edit.sweep.reading import DONE, Sweep

METRIC = "score"
MOST_TASKS = 13  # with more lines in one panel, no one could follow them


@dataclass(frozen=True)
class Choice:
    """What is drawn.

    Attributes:
        tasks: What means are over; the first `MOST_TASKS` of them have a line.
        published: The paper's values, as a preset has them: metric, source, n_edits, tasks. Empty without.
        published_method: The editor that the published edited points are of, in small letters; None where the design
            does not say.
        notices: What was left out, one sentence each.
    """

    sweep: Sweep
    series: tuple[Series, ...]
    tasks: tuple[str, ...]
    metric: str
    published: Mapping[str, Any]
    published_method: str | None
    notices: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[str, ...]:
        """The tasks that have a line."""
        return self.tasks[:MOST_TASKS]

    def measures(self) -> dict[str, Measure]:
        """What a panel with all tasks shows, by name: the tasks and, of several, their mean."""
        found = {short(task): score(task, self.metric) for task in self.shown}
        return found | ({MEAN: mean_score(self.tasks, self.metric)} if len(self.tasks) > 1 else {})

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


def choose(sweep: Sweep, tasks: Sequence[str] | None = None, metric: str | None = None) -> Choice:
    """What of a sweep to draw.

    Args:
        tasks: Names of tasks and groups; by default all tasks that have the metric, but not those about the edits
            themselves.
        metric: As in the results; `score` by default.

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
    metric = metric or METRIC
    known_tasks, groups = sweep.tasks(), sweep.groups()
    have = {task: unique(m for cell in cells for m in cell.metrics(task)) for task in [*known_tasks, *groups]}
    metrics = unique(m for task in known_tasks for m in have[task])
    problems = []
    if metric not in metrics:
        problems.append(
            f"--metric {metric}: no cell has it.{nearest(metric, metrics)} Known are {', '.join(metrics) or 'none'}"
        )
    named = []
    for name in tasks or ():
        if name not in have and f"edithurt_{name}" in have:
            name = f"edithurt_{name}"
        if name not in have:
            problems.append(f"--tasks {name}: not in this sweep.{nearest(name, have)} Known are {', '.join(have)}")
        elif metric in metrics and metric not in have[name]:
            problems.append(f"--tasks {name}: it has no {metric}; it has {', '.join(have[name])}")
        named.append(name)
    header = sweep.header.get("published") or {}
    counts = header.get("n_edits") or []
    for task, values in (header.get("tasks") or {}).items():
        if len(values) != len(counts):
            problems.append(f"published: {task} has {len(values)} values for {len(counts)} n_edits; mend the design")
    if problems:
        raise ConfigurationError(problems)
    chosen = _members(sweep, named) if named else [t for t in known_tasks if metric in have[t] and t not in EDITING]
    if not named and not chosen:  # nothing but tasks about the edits
        chosen = [task for task in known_tasks if metric in have[task]]
    notices = []
    if without := [t for t in known_tasks if metric not in have[t] and not named]:
        notices.append(f"{', '.join(without)}: no metric {metric}; --metric draws another")
    if len(chosen) > MOST_TASKS:
        notices.append(f"{len(chosen)} tasks: the first {MOST_TASKS} have a line, the mean is over all; see --tasks")
    figure = str((sweep.header.get("figure") or {}).get("panel") or "")
    method = figure.split(",")[0].strip().lower() or None
    return Choice(sweep, series, tuple(chosen), metric, header, method, tuple(notices))


def _members(sweep: Sweep, names: Sequence[str]) -> list[str]:
    """Tasks named, groups replaced by their tasks where the results say which."""
    members: dict[str, list[str]] = {}
    for _, cell in sweep.cells():
        members.update(cell.results.get("group_subtasks") or {})
    found: list[str] = []
    for name in names:
        found += _members(sweep, members[name]) if members.get(name) else [name]
    return unique(found)
