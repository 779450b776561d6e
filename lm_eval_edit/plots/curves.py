"""Lines against the number of edits: a line a task (the paper's figure 3), a line a method, a line a weight matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import lm_eval_edit.plots.words as words
from lm_eval_edit.plots.choice import Choice
from lm_eval_edit.plots.picture import Picture
from lm_eval_edit.plots.series import MEAN, Line, Series, mean_score, relative_norm, unique
from lm_eval_edit.plots.style import (
    HEIGHT,
    MEAN_LOOK,
    WIDTH,
    Look,
    counts_axis,
    draw_line,
    figure_of,
    footer,
    grid,
    label_ends,
    look,
    mark_collapsed,
    panel,
    share_axis,
    shifts,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PARAMETERS = 8

Drawn = Mapping[str, tuple[Line, Look]]  # name -> line


def tasks(choice: Choice) -> list[Picture]:
    """For each series that edits in sequence: a line for each task, and their mean."""
    return [
        picture for series in choice.series if not series.first.at_once and (picture := _tasks(choice, series))
    ]  # fmt: skip


def _tasks(choice: Choice, series: Series) -> Picture | None:
    lines = {
        name: (series.line(name, measure), MEAN_LOOK if name == MEAN else look(i))
        for i, (name, measure) in enumerate(choice.measures().items())
    }
    lines = {name: drawn for name, drawn in lines.items() if drawn[0].known}
    if not lines:
        return None
    _, axes = panel()
    share_axis(axes, _values(lines), choice.metric)
    _draw(axes, series, lines, bars=series.seeds > 1)
    notes = words.intervals([line for line, _ in lines.values()], bands=series.seeds == 1)
    if len(choice.shown) < len(choice.tasks):
        notes.append(f"{len(choice.shown)} of {len(choice.tasks)} tasks are shown; the mean is over all of them")
    notes += _published(axes, choice, series) + choice.said([series])
    title = f"{series.label} on {series.where}: {choice.metric} of the tasks"
    return _finished(axes, f"tasks-{series.file_name}", title, [series], lines, notes)


def _published(axes: Axes, choice: Choice, series: Series) -> list[str]:
    """The paper's values as faint lines behind; a sentence that names them."""
    found = choice.published_of(series)
    for i, task in enumerate(choice.shown):
        if task in found:
            style = look(i)
            axes.plot(
                *zip(*found[task], strict=True), color=style.colour, marker=style.marker, ls=(0, (2, 2)), lw=0.9, ms=5,
                mfc="none", alpha=0.5, zorder=1.8, label=f"published {choice.short(task)}",
            )  # fmt: skip
    return [choice.source("faint, hollow marks")] if found else []


def methods(choice: Choice) -> list[Picture]:
    """For each model and data set with several series: a line for each series' mean of tasks."""
    pictures = (_methods(choice, where, group) for where, group in choice.by_where().items())
    return [picture for picture in pictures if picture]


def _methods(choice: Choice, where: str, group: list[Series]) -> Picture | None:
    mean = mean_score(choice.averaged, choice.metric)
    found = [(series, line) for series in group if (line := series.line(series.label, mean)).known]
    if len(found) < 2:
        return None
    _, axes = panel()
    lines = {line.name: (line, look(i)) for i, (_, line) in enumerate(found)}
    counts_axis(axes, unique(n for series, _ in found for n in series.checkpoints), "edits", WIDTH)
    share_axis(axes, _values(lines), f"mean {choice.metric}")
    bars = len(found) > 3 or any(series.seeds > 1 for series, _ in found)  # many bands would cover each other
    ends = {}
    for (series, line), shift in zip(found, shifts(len(found)), strict=True):
        style = lines[line.name][1]
        draw_line(axes, line, style, bars=bars, shift=shift)
        mark_collapsed(axes, [*series.collapsed], style.colour)
        name = f"{line.name}, {words.from_where(series)}" if series.collapsed else line.name
        ends[name] = (line, style)
    label_ends(axes, _ends(ends), HEIGHT)
    names = ", ".join(choice.short(task) for task in choice.averaged[:8])
    more = f" and {len(choice.averaged) - 8} more" if len(choice.averaged) > 8 else ""
    notes = [f"mean of {len(choice.averaged)} tasks: {names}{more}"] if len(choice.averaged) > 1 else [names]
    notes += choice.said(group)
    notes += words.intervals([line for _, line in found], bands=not bars)
    notes += ["× the model had collapsed"] if any(series.collapsed for series, _ in found) else []
    title = f"Methods on {group[0].where}: mean {choice.metric} of the tasks"
    return _finished(axes, f"methods-{where}", title, [series for series, _ in found], lines, notes)


def norms(choice: Choice) -> list[Picture]:
    """For each series: how far its edits moved each weight matrix, relative to the matrix."""
    return [picture for series in choice.series if (picture := _norms(series))]


def _norms(series: Series) -> Picture | None:
    names = unique(name for row in series.rows for cell in row.cells for name in cell.edit.get("parameters") or {})
    found = {name: series.line(words.parameter(name), relative_norm(name)) for name in names}
    # Only as many as can be told apart: those that moved furthest.
    furthest = sorted(found, key=lambda name: -max((p.value for p in found[name].known), default=0.0))[:MOST_PARAMETERS]
    shown = [line for name, line in found.items() if name in furthest]
    if not any(point.n_edits for line in shown for point in line.known):
        return None
    lines = {line.name: (line, look(i)) for i, line in enumerate(shown)}
    _, axes = panel()
    axes.set_ylim(0, 1.05 * max(_values(lines)) or 1)
    axes.set_ylabel("||Δ|| / ||W||")
    grid(axes, "y")
    _draw(axes, series, lines, bars=True)
    notes = [f"the {len(shown)} of {len(found)} matrices that moved furthest"] if len(shown) < len(found) else []
    notes += words.intervals(shown)
    title = f"{series.label} on {series.where}: how far the weights moved"
    return _finished(axes, f"norms-{series.file_name}", title, [series], lines, notes)


def _values(lines: Drawn) -> list[float]:
    return [point.value for line, _ in lines.values() for point in line.known]


def _draw(axes: Axes, series: Series, lines: Drawn, *, bars: bool) -> None:
    """Lines of one series over its checkpoints, with their names and crosses."""
    counts_axis(axes, series.checkpoints, "edits", WIDTH)
    for (line, style), shift in zip(lines.values(), shifts(len(lines)), strict=True):
        draw_line(axes, line, style, bars=bars, shift=shift)
    mark_collapsed(axes, [*series.collapsed], words=[series.collapse(n) for n in series.collapsed])
    label_ends(axes, _ends(lines), HEIGHT)


def _ends(lines: Drawn) -> dict[str, tuple[float, float, Look]]:
    last = {name: line.known[-1] for name, (line, _) in lines.items()}
    return {name: (point.n_edits, point.value, lines[name][1]) for name, point in last.items()}


def _finished(
    axes: Axes, name: str, title: str, series: list[Series], lines: Drawn, notes: list[str]
) -> Picture:  # fmt: skip
    axes.set_title(title, loc="left")
    footer(axes, notes, HEIGHT)
    alt = words.lines(title, series, [line for line, _ in lines.values()])
    return Picture(name, name.split("-")[0], title, alt, figure_of(axes))
