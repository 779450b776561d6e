"""Batches one after another: a small panel a task, a line a batch size, against operations (figures 5 to 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import lm_eval_edit.plots.words as words
from lm_eval_edit.plots.choice import Choice
from lm_eval_edit.plots.picture import Picture
from lm_eval_edit.plots.series import MEAN, Line, Series, unique
from lm_eval_edit.plots.style import (
    SMALL_PRINT,
    counts_axis,
    diamonds,
    draw_line,
    mark_collapsed,
    ramp,
    share_axis,
    shifts,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT = 1.75, 1.35  # of a small panel's axes, inches
_ACROSS, _DOWN = _WIDTH + 0.35, _HEIGHT + 0.4  # from one panel to the next
_COLUMNS = 3
_LEFT, _TOP = 0.8, 0.8  # room for labels and the title


def grids(choice: Choice) -> list[Picture]:
    """For each method with batches in sequence: a small panel for each task, in it a line for each batch size."""
    together: dict[tuple, list[Series]] = {}
    for series in choice.series:
        if not series.first.at_once:
            together.setdefault(series.first.key[:3], []).append(series)
    groups = [sorted(group, key=_size) for group in together.values() if max(map(_size, group)) > 1]
    return [picture for group in groups if (picture := _grid(choice, group))]


def _size(series: Series) -> int:
    return int(series.first.edit_batch_size)


def _grid(choice: Choice, group: Sequence[Series]) -> Picture | None:
    from matplotlib.figure import Figure

    lines = {name: [series.line(name, measure) for series in group] for name, measure in choice.measures().items()}
    lines = {name: each for name, each in lines.items() if any(line.known for line in each)}
    if not lines:
        return None
    columns = min(_COLUMNS, len(lines))
    rows = -(-len(lines) // columns)
    width, height = _LEFT + columns * _ACROSS + 1.6, 2 * _TOP + rows * _DOWN
    figure = Figure(figsize=(width, height))
    for i in range(len(lines)):
        row, column = divmod(i, columns)
        left, bottom = _LEFT + column * _ACROSS, height - _TOP - row * _DOWN - _HEIGHT
        figure.add_axes((left / width, bottom / height, _WIDTH / width, _HEIGHT / height))
    _panels(figure.axes, lines, group, choice.metric, columns)
    handles = [figure.axes[0].plot([], [], **style.plot())[0] for style in ramp(len(group))]
    figure.legend(
        handles, [f"{_size(series):,}" for series in group], title="facts in a batch", loc="upper left",
        bbox_to_anchor=((_LEFT + columns * _ACROSS - 0.2) / width, 1 - 0.7 / height), frameon=False, alignment="left",
    )  # fmt: skip
    sizes = [f"{_size(series):,} a batch" for series in group]
    notes = words.intervals(
        replace(line, name=size) for each in lines.values() for size, line in zip(sizes, each, strict=True)
    )
    gone = [words.collapsed(series) for series in group if series.collapsed]
    notes += [f"× the model had collapsed: {'; '.join(gone)}"] if gone else []
    notes += _unedited(figure.axes, lines, choice, group[0]) + choice.said(group)
    title = f"{group[0].first.method} on {group[0].where}: {choice.metric}, batches one after another"
    figure.text(_LEFT / width, 1 - 0.4 / height, title, fontsize=10)
    below = height - _TOP - rows * _DOWN - 0.2
    figure.text(_LEFT / width, below / height, "\n".join(notes), va="top", **SMALL_PRINT)
    alt = f"{len(lines)} small line charts, {title}, against operations. {_told(lines, group)}"
    name = group[0].file_name.removesuffix(f"-batch{_size(group[0])}")
    return Picture(f"operations-{name}", "operations", title, alt, figure)


def _panels(
    panels: Sequence[Axes], lines: Mapping[str, list[Line]], group: Sequence[Series], metric: str, columns: int
) -> None:
    """All panels have the same axes; their labels stand at the left and at the bottom."""
    points = [point for each in lines.values() for line in each for point in line.known]
    crosses = [[-(-n // _size(series)) for n in series.collapsed] for series in group]
    counts = unique([*(point.n_operations for point in points), *(n for each in crosses for n in each)])
    looks = ramp(len(group))
    for i, (axes, (name, each)) in enumerate(zip(panels, lines.items(), strict=True)):
        counts_axis(axes, counts, "operations", _WIDTH)
        share_axis(axes, [point.value for point in points], metric)
        axes.tick_params(labelbottom=i + columns >= len(lines), labelleft=i % columns == 0)
        axes.xaxis.label.set_visible(i + columns >= len(lines))
        axes.yaxis.label.set_visible(i % columns == 0)
        for line, style, operations, shift in zip(each, looks, crosses, shifts(len(group)), strict=True):
            draw_line(axes, line, style, operations=True, bars=True, shift=shift)
            mark_collapsed(axes, operations, style.colour)
        axes.set_title(name, loc="left", fontsize=9, fontweight="bold" if name == MEAN else "normal")


def _unedited(panels: Sequence[Axes], lines: Mapping[str, list[Line]], choice: Choice, series: Series) -> list[str]:
    """The paper's values of the unedited model; its edited ones would not say of which batch size they are."""
    found = {task: points for task, points in choice.published_of(series).items() if choice.short(task) in lines}
    for task, points in found.items():
        axes = panels[list(lines).index(choice.short(task))]
        diamonds(axes, [point for point in points if point[0] == 0], choice.short(task))
    return [choice.source("hollow diamonds, unedited")] if found else []


def _told(lines: Mapping[str, list[Line]], group: Sequence[Series]) -> str:
    told = []
    for k, series in enumerate(group):
        ends = [(name, each[k].known) for name, each in lines.items() if each[k].known]
        words_of = [
            f"{name} from {known[0].value:.2f} to {known[-1].value:.2f} after {known[-1].n_operations} operations"
            for name, known in ends
        ]
        gone = f" {words.collapsed(series)}." if series.collapsed else ""
        told.append(f"{_size(series)} a batch: {'; '.join(words_of)}.{gone}")
    return " ".join(told)
