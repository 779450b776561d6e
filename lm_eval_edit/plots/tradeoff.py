"""What an edit is for against what it costs: edit quality and the share of ability that is left, a point a method."""

from __future__ import annotations

from lm_eval_edit.plots import words
from lm_eval_edit.plots.choice import Choice
from lm_eval_edit.plots.curves import HEIGHT, panel
from lm_eval_edit.plots.picture import Picture
from lm_eval_edit.plots.series import EDITING, EFFICACY, Line, efficacy, recalled, retained
from lm_eval_edit.plots.style import footer, label_ends, look

_WIDTH = 4.2


def tradeoff(choice: Choice) -> list[Picture]:
    """For each model and data set: a path for each series through its checkpoints, the last one with its intervals."""
    tasks = [task for task in choice.tasks if task not in EDITING]
    measured = EFFICACY in choice.sweep.tasks()
    pictures = []
    for where, group in choice.by_where().items():
        paths, without = {}, []
        for series in group:
            quality = series.line(series.label, efficacy if measured else recalled)
            ability = series.line(series.label, retained(tasks, choice.metric))
            both = [
                (x, y)
                for x, y in zip(quality.points, ability.points, strict=True)
                if x is not None and y is not None and x.n_edits
            ]
            if both:
                paths[series.label] = (series, both)
            elif series.collapsed:
                without.append(f"{series.label}: no point, collapsed at {series.collapsed[0]:,} edits already")
        if not paths:
            continue
        figure, axes = panel(_WIDTH)
        axes.set_xlim(-0.03, 1.03)
        top = max(1.0, *(y.value for _, both in paths.values() for _, y in both))
        axes.set_ylim(-0.02, 1.03 * top)
        axes.grid(color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)
        axes.axhline(1, color="#888888", lw=0.8, ls=(0, (4, 3)), zorder=1)
        axes.set_xlabel("edit quality" + (" (score of efficacy)" if measured else " (em after the last edit)"))
        axes.set_ylabel(f"share of mean {choice.metric} left")
        ends, told = {}, []
        for i, (label, (series, both)) in enumerate(paths.items()):
            style = look(i)
            axes.plot(
                [x.value for x, _ in both], [y.value for _, y in both], color=style.colour, marker=style.marker, ms=3,
                lw=0.8, dashes=style.dashes or (None, None), alpha=0.8, label=label,
            )  # fmt: skip
            x, y = both[-1]
            axes.errorbar(
                x.value, y.value, xerr=[[x.value - x.low], [x.high - x.value]],
                yerr=[[y.value - y.low], [y.high - y.value]], fmt="none", ecolor=style.colour, elinewidth=1, capsize=2,
            )  # fmt: skip
            axes.plot(x.value, y.value, ls="none", marker=style.marker, ms=9, color=style.colour, mec="black", mew=0.6,
                      zorder=4, label=f"_last {label}")  # fmt: skip
            name = f"{label}, {x.n_edits:,} edits" + (
                ", then collapsed" if series.collapsed and series.collapsed[-1] > x.n_edits else ""
            )
            ends[name] = (x.value, y.value, style)
            told.append(f"{label} after {x.n_edits} edits: edit quality {x.value:.2f}, {y.value:.2f} of ability left")
        label_ends(axes, ends, HEIGHT, leaders=False)
        notes = ["small marks: earlier checkpoints, large: the last; upper right is best"]
        notes += without
        last = [Line(label, (x, y)) for label, (_, both) in paths.items() for x, y in both[-1:]]
        notes += words.intervals(last)
        title = f"Edit quality against ability left, {group[0].where}"
        axes.set_title(title, loc="left")
        footer(axes, notes, 0.55, HEIGHT)
        alt = f"Scatter plot, {title}. {'; '.join([*told, *without])}."
        pictures.append(Picture(f"tradeoff-{where}", "tradeoff", title, alt, figure))
    return pictures
