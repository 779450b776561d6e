"""Scores against the number of edits: one line a task (figure 3 of the paper), or one line a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lm_eval_edit.plots import words
from lm_eval_edit.plots.choice import Choice
from lm_eval_edit.plots.picture import Picture
from lm_eval_edit.plots.series import MEAN, Line, Series, mean_score, relative_norm, score, short, unique
from lm_eval_edit.plots.style import (
    MEAN_LOOK,
    Look,
    counts_axis,
    draw_line,
    footer,
    label_ends,
    look,
    mark_collapsed,
    share_axis,
    shifts,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 5.2, 3.4  # of the axes, inches
MOST_PARAMETERS = 8


def panel(width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """A figure with one set of axes of this size in inches; what stands around it is cut to when it is saved."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width + 3, height + 2))
    axes = figure.add_axes((0.8 / (width + 3), 1 / (height + 2), width / (width + 3), height / (height + 2)))
    return figure, axes


def _draw(axes: Axes, series: Series, lines: Mapping[str, tuple[Line, Look]], y_label: str) -> None:
    """Lines of one series over its checkpoints, with labels and crosses."""
    counts_axis(axes, series.checkpoints, "edits", WIDTH)
    share_axis(axes, [p.value for line, _ in lines.values() for p in line.known], y_label)
    for (line, style), shift in zip(lines.values(), shifts(len(lines)), strict=True):
        draw_line(axes, line, style, bars=series.seeds > 1, shift=shift)
    mark_collapsed(axes, series.collapsed)
    label_ends(axes, _ends(lines), HEIGHT)


def _ends(lines: Mapping[str, tuple[Line, Look]]) -> dict[str, tuple[float, float, Look]]:
    return {
        name: (line.known[-1].n_edits, line.known[-1].value, style)
        for name, (line, style) in lines.items()
        if line.known
    }


def tasks(choice: Choice) -> list[Picture]:
    """For each series that edits in sequence: a line for each task, and their mean."""
    pictures = []
    for series in choice.series:
        if series.first.at_once:
            continue
        lines = {
            short(task): (series.line(short(task), score(task, choice.metric)), look(i))
            for i, task in enumerate(choice.tasks)
        }
        lines = {name: drawn for name, drawn in lines.items() if drawn[0].known}
        if len(choice.tasks) > 1:
            mean = series.line(MEAN, mean_score(choice.tasks, choice.metric))
            if mean.known:
                lines[MEAN] = (mean, MEAN_LOOK)
        if not lines:
            continue
        figure, axes = panel()
        _draw(axes, series, lines, choice.metric)
        notes = words.intervals([line for line, _ in lines.values()], bands=series.seeds == 1)
        notes += _published(axes, choice, series)
        title = f"{series.label} on {series.where}: {choice.metric} of the tasks"
        axes.set_title(title, loc="left")
        footer(axes, notes, 0.55, HEIGHT)
        alt = words.lines(title, "edits", series, [line for line, _ in lines.values()])
        pictures.append(Picture(f"tasks-{series.file_name}", "tasks", title, alt, figure))
    return pictures


def _published(axes: Axes, choice: Choice, series: Series) -> list[str]:
    """The paper's values as faint lines behind; a sentence that names them."""
    found = choice.published.of(series)
    for i, task in enumerate(choice.tasks):
        if points := found.get(task):
            style = look(i)
            axes.plot(
                *zip(*points, strict=True), color=style.colour, marker=style.marker, ls=(0, (2, 2)), lw=0.9, ms=5,
                mfc="none", alpha=0.5, zorder=1.8, label=f"published {short(task)}",
            )  # fmt: skip
    return [choice.published.sentence(choice.metric, "faint, hollow marks")] if found else []


def methods(choice: Choice) -> list[Picture]:
    """For each model and data set with several series: a line for each series' mean of tasks."""
    pictures = []
    for where, group in choice.by_where().items():
        lines = {series.label: series.line(series.label, mean_score(choice.tasks, choice.metric)) for series in group}
        drawn = [series for series in group if lines[series.label].known]
        if len(drawn) < 2:
            continue
        figure, axes = panel()
        counts = unique(n for series in drawn for n in series.checkpoints)
        counts_axis(axes, counts, "edits", WIDTH)
        share_axis(axes, [p.value for s in drawn for p in lines[s.label].known], f"mean {choice.metric}")
        bars = len(drawn) > 3 or any(series.seeds > 1 for series in drawn)  # many bands would cover each other
        ends = {}
        for i, series in enumerate(drawn):
            line, style = lines[series.label], look(i)
            draw_line(axes, line, style, bars=bars, shift=shifts(len(drawn))[i])
            mark_collapsed(axes, series.collapsed, style.colour, word=False)
            name = series.label
            if series.collapsed:
                name += f", × from {series.collapsed[0]:,}"
            ends[name] = (line.known[-1].n_edits, line.known[-1].value, style)
        label_ends(axes, ends, HEIGHT)
        held = [lines[series.label] for series in drawn]
        notes = [f"mean of {len(choice.tasks)} tasks: {_some(choice.tasks)}"]
        notes += words.intervals(held, bands=not bars)
        notes += ["× the model had collapsed"] if any(series.collapsed for series in drawn) else []
        title = f"Methods on {drawn[0].where}: mean {choice.metric} of the tasks"
        axes.set_title(title, loc="left")
        footer(axes, notes, 0.55, HEIGHT)
        alt = words.lines(title, "edits", drawn, held)
        pictures.append(Picture(f"methods-{where}", "methods", title, alt, figure))
    return pictures


def _some(tasks: Sequence[str], most: int = 8) -> str:
    names = [short(task) for task in tasks]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def norms(choice: Choice) -> list[Picture]:
    """For each series: how far its edits moved each weight matrix, relative to the matrix."""
    pictures = []
    for series in choice.series:
        parameters = unique(
            name for row in series.rows for cell in row.cells for name in cell.edit.get("parameters") or {}
        )
        lines = {name: series.line(words.parameter(name), relative_norm(name)) for name in parameters}
        # Only as many as can be told apart: those that moved furthest.
        furthest = sorted(lines, key=lambda name: -max((p.value for p in lines[name].known), default=0.0))
        shown = [name for name in lines if name in furthest[:MOST_PARAMETERS]]
        if not any(p.n_edits for name in shown for p in lines[name].known):
            continue
        figure, axes = panel()
        held = {lines[name].name: (lines[name], look(i)) for i, name in enumerate(shown)}
        counts_axis(axes, series.checkpoints, "edits", WIDTH)
        top = max(p.value for line, _ in held.values() for p in line.known)
        axes.set_ylim(0, 1.05 * top or 1)
        axes.set_ylabel("||Δ|| / ||W||")
        axes.grid(axis="y", color="#dddddd", lw=0.6)
        for (line, style), shift in zip(held.values(), shifts(len(held)), strict=True):
            draw_line(axes, line, style, bars=True, shift=shift)
        mark_collapsed(axes, series.collapsed)
        label_ends(axes, _ends(held), HEIGHT)
        notes = [f"the {len(shown)} of {len(lines)} matrices that moved furthest"] if len(shown) < len(lines) else []
        notes += words.intervals([line for line, _ in held.values()])
        title = f"{series.label} on {series.where}: how far the weights moved"
        axes.set_title(title, loc="left")
        footer(axes, notes, 0.55, HEIGHT)
        alt = words.lines(title, "edits", series, [line for line, _ in held.values()])
        pictures.append(Picture(f"norms-{series.file_name}", "norms", title, alt, figure))
    return pictures
