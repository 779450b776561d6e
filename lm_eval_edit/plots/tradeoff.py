"""What an edit is for against what it costs: edit quality and the share of ability that is left, a point a method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import lm_eval_edit.plots.words as words
from lm_eval_edit.plots.choice import Choice
from lm_eval_edit.plots.picture import Picture
from lm_eval_edit.plots.series import EFFICACY, Line, Point, Series, efficacy, recalled, retained
from lm_eval_edit.plots.style import HEIGHT, Look, figure_of, footer, grid, label_ends, look, panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 4.2

Path = list[tuple[Point, Point]]  # (edit quality, ability left) at each checkpoint that has both


def tradeoff(choice: Choice) -> list[Picture]:
    """For each model and data set: a path for each series through its checkpoints, the last one with its intervals."""
    pictures = (_tradeoff(choice, where, group) for where, group in choice.by_where().items())
    return [picture for picture in pictures if picture]


def _tradeoff(choice: Choice, where: str, group: Sequence[Series]) -> Picture | None:
    tasks = choice.averaged
    measured = EFFICACY in choice.sweep.tasks()
    found = {series.label: (series, _path(series, tasks, choice.metric, measured)) for series in group}
    paths = {label: (series, path) for label, (series, path) in found.items() if path}
    if not paths:
        return None
    without = [
        f"{label}: no point, {series.collapse(first)} at {first:,} edits already"
        for label, (series, path) in found.items()
        if not path and (first := next(iter(series.collapsed), None))
    ]
    _, axes = panel(_WIDTH)
    axes.set_xlim(-0.03, 1.03)
    left = [y.value for _, path in paths.values() for _, y in path]
    axes.set_ylim(min(-0.02, 1.03 * min(left)), 1.03 * max(1.0, *left))
    axes.set_xlabel("edit quality" + (" (score of efficacy)" if measured else " (em after the last edit)"))
    axes.set_ylabel(f"share of mean {choice.metric} left")
    axes.axhline(1, color="#888888", lw=0.8, ls=(0, (4, 3)), zorder=1)
    grid(axes)
    ends, told = {}, []
    for i, (label, (series, path)) in enumerate(paths.items()):
        _draw(axes, label, path, look(i))
        x, y = path[-1]
        gone = next((n for n in series.collapsed if n > x.n_edits), None)
        then = f", then {series.collapse(gone)}" if gone else ""
        ends[f"{label}, {x.n_edits:,} edits{then}"] = (x.value, y.value, look(i))
        told.append(f"{label} after {x.n_edits} edits{then}: edit quality {x.value:.2f}, {y.value:.2f} of ability left")
    label_ends(axes, ends, HEIGHT, leaders=False)
    last = [Line(label, path[-1]) for label, (_, path) in paths.items()]
    notes = ["small marks: earlier checkpoints, large: the last; upper right is best", *without]
    notes += choice.at_floor(group)
    title = f"Edit quality against ability left ({choice.metric}), {group[0].where}"
    axes.set_title(title, loc="left")
    footer(axes, notes + words.intervals(last), HEIGHT)
    alt = f"Scatter plot, {title}. {'; '.join([*told, *without])}."
    return Picture(f"tradeoff-{where}", "tradeoff", title, alt, figure_of(axes))


def _path(series: Series, tasks: Sequence[str], metric: str, measured: bool) -> Path:
    quality = series.line("quality", efficacy if measured else recalled)
    ability = series.line("ability", retained(tasks, metric))
    both = zip(quality.points, ability.points, strict=True)
    return [(x, y) for x, y in both if x is not None and y is not None and x.n_edits]


def _draw(axes: Axes, label: str, path: Path, style: Look) -> None:
    axes.plot(
        [x.value for x, _ in path], [y.value for _, y in path], color=style.colour, marker=style.marker, ms=3,
        lw=0.8, dashes=style.dashes or (None, None), alpha=0.8, label=label,
    )  # fmt: skip
    x, y = path[-1]
    axes.errorbar(
        x.value, y.value, xerr=[[x.value - x.low], [x.high - x.value]], yerr=[[y.value - y.low], [y.high - y.value]],
        fmt="none", ecolor=style.colour, elinewidth=1, capsize=2,
    )  # fmt: skip
    axes.plot(
        x.value, y.value, ls="none", marker=style.marker, ms=9, color=style.colour, mec="black", mew=0.6, zorder=4,
        label=f"_last {label}",
    )  # fmt: skip
