"""One batch of facts at once: the score of the tasks against the batch's size, as bars (the paper's figure 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lm_eval_edit.plots.words as words
from lm_eval_edit.plots.choice import Choice
from lm_eval_edit.plots.picture import Picture
from lm_eval_edit.plots.series import Line, Series
from lm_eval_edit.plots.style import EDGE, diamonds, figure_of, footer, mark_collapsed, panel, ramp, share_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer
    from matplotlib.lines import Line2D

    Legend = list[tuple[Line2D | BarContainer, str]]  # what is shown, and what stands beside it

_HEIGHT = 3.0  # of the axes, inches


def bars(choice: Choice) -> list[Picture]:
    """For each series of batches at once: the tasks side by side, in each of them a bar for each batch size."""
    return [picture for series in choice.series if series.first.at_once and (picture := _bars(choice, series))]


def _bars(choice: Choice, series: Series) -> Picture | None:
    lines = [line for name, measure in choice.measures().items() if (line := series.line(name, measure)).known]
    if not lines:
        return None
    counts = series.checkpoints
    _, axes = panel(max(4.0, 0.13 * len(counts) * len(lines) + 0.3 * len(lines)), _HEIGHT)
    share_axis(axes, [point.value for line in lines for point in line.known], choice.metric)
    step = 1 / (len(counts) + 1.2)
    offset = {n: (j - (len(counts) - 1) / 2) * step for j, n in enumerate(counts)}  # of a bar from its task's middle
    handles = _batches(axes, series, lines, offset, step)
    notes = words.intervals(lines) + choice.said([series])
    if published := choice.published_of(series):
        names = [line.name for line in lines]
        for task, points in published.items():
            places = [(names.index(choice.short(task)) + offset[n], value) for n, value in points if n in offset]
            diamonds(axes, places, choice.short(task))
        notes.append(choice.source("hollow diamonds"))
    axes.set_xticks(
        range(len(lines)), [line.name for line in lines], rotation=25, ha="right", rotation_mode="anchor"
    )  # fmt: skip
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.6, len(lines) - 0.4)
    title = f"{series.first.method} on {series.where}: {choice.metric} after one batch of edits"
    axes.set_title(title, loc="left")
    axes.legend(
        [handle for handle, _ in handles], [label for _, label in handles], title="facts in the batch",
        loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8.5, alignment="left",
    )  # fmt: skip
    footer(axes, notes, _HEIGHT)
    alt = words.lines(title, [series], lines, chart="Bar chart")
    return Picture(f"batch-{series.file_name}", "batch", title, alt, figure_of(axes))


def _batches(axes: Axes, series: Series, lines: list[Line], offset: dict[int, float], step: float) -> Legend:
    """The bars of every batch size, or crosses; what the legend shows for each."""
    handles: Legend = []
    looks = ramp(len(offset) - 1, fill=True)
    for j, (n, beside) in enumerate(offset.items()):
        known = [(i + beside, line.points[j]) for i, line in enumerate(lines) if line.points[j] is not None]
        if n in series.collapsed:
            mark_collapsed(axes, [i + beside for i in range(len(lines))])
            handles.append((axes.lines[-1], f"{n:,} {series.collapse(n)}"))
        elif known:
            x, points = zip(*known, strict=True)
            style: dict[str, Any] = {"color": "white", "hatch": "////"} if n == 0 else {"color": looks[j - 1].colour}
            label = f"{n:,}" if n else "unedited"
            errors = [[p.value - p.low for p in points], [p.high - p.value for p in points]]
            drawn = axes.bar(
                x, [p.value for p in points], step, edgecolor=EDGE, lw=0.6, yerr=errors, zorder=2,
                error_kw={"elinewidth": 0.8, "capsize": 1.5, "ecolor": EDGE},
                label=label, **style,
            )  # fmt: skip
            handles.append((drawn, label))
    return handles
