"""One batch of facts at once: bars (the paper's figure 4). Batches one after another: small panels (figures 5 to 8)."""

from __future__ import annotations

from lm_eval_edit.plots import words
from lm_eval_edit.plots.choice import Choice
from lm_eval_edit.plots.curves import panel
from lm_eval_edit.plots.picture import Picture
from lm_eval_edit.plots.series import MEAN, mean_score, score, short, unique
from lm_eval_edit.plots.style import counts_axis, draw_line, footer, mark_collapsed, ramp, share_axis, shifts

_HEIGHT = 3.0
_SMALL = (1.75, 1.35)  # a small panel's axes, inches
_COLUMNS = 3


def bars(choice: Choice) -> list[Picture]:
    """For each series of batches at once: the tasks side by side, in each of them a bar for each batch size."""
    pictures = []
    for series in choice.series:
        if not series.first.at_once:
            continue
        groups = {short(task): score(task, choice.metric) for task in choice.tasks}
        if len(choice.tasks) > 1:
            groups[MEAN] = mean_score(choice.tasks, choice.metric)
        lines = {name: series.line(name, measure) for name, measure in groups.items()}
        lines = {name: line for name, line in lines.items() if line.known}
        if not lines:
            continue
        counts = series.checkpoints
        step = 1 / (len(counts) + 1.2)
        figure, axes = panel(max(4.0, 0.13 * len(counts) * len(lines) + 0.3 * len(lines)), _HEIGHT)
        share_axis(axes, [p.value for line in lines.values() for p in line.known], choice.metric)
        looks = ramp(len(counts) - 1, fill=True)
        handles = []
        for j, n in enumerate(counts):
            places = [i + (j - (len(counts) - 1) / 2) * step for i in range(len(lines))]
            found = [line.points[j] for line in lines.values()]
            known = [(place, p) for place, p in zip(places, found, strict=True) if p is not None]
            if known:
                style = {"color": "white", "hatch": "////"} if n == 0 else {"color": looks[j - 1].colour}
                drawn = axes.bar(
                    [place for place, _ in known], [p.value for _, p in known], step, edgecolor="#333333", lw=0.6,
                    yerr=[[p.value - p.low for _, p in known], [p.high - p.value for _, p in known]],
                    error_kw={"elinewidth": 0.8, "capsize": 1.5, "ecolor": "#333333"}, zorder=2,
                    label="unedited" if n == 0 else f"{n:,}", **style,
                )  # fmt: skip
            if n in series.collapsed:
                mark_collapsed(axes, places, word=False)
                handles.append((axes.lines[-1], f"{n:,} collapsed"))
            elif known:
                handles.append((drawn, drawn.get_label()))
        notes = words.intervals(lines.values())
        if published := choice.published.of(series):
            for i, task in enumerate(task for task in choice.tasks if short(task) in lines):
                points = [(i + (counts.index(n) - (len(counts) - 1) / 2) * step, value)
                          for n, value in published.get(task, ()) if n in counts]  # fmt: skip
                if points:
                    axes.plot(
                        *zip(*points, strict=True), ls="none", marker="D", ms=4, mfc="white", mec="#333333", alpha=0.8,
                        zorder=4, label=f"_published {short(task)}",
                    )  # fmt: skip
            notes.append(choice.published.sentence(choice.metric, "hollow diamonds"))
        axes.set_xticks(range(len(lines)), list(lines), rotation=25, ha="right", rotation_mode="anchor")
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.6, len(lines) - 0.4)
        title = f"{series.first.method} on {series.where}: {choice.metric} after one batch of edits"
        axes.set_title(title, loc="left")
        drawn, labels = zip(*handles, strict=True)
        axes.legend(
            drawn, labels, title="facts in the batch", loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False,
            fontsize=8.5, alignment="left",
        )  # fmt: skip
        footer(axes, notes, 0.75, _HEIGHT)
        alt = words.lines(title, "facts in one batch", series, list(lines.values())).replace("Line", "Bar", 1)
        alt = alt.replace("lines:", "groups of bars:", 1).replace("1 line:", "1 group of bars:", 1)
        pictures.append(Picture(f"batch-{series.file_name}", "batch", title, alt, figure))
    return pictures


def grids(choice: Choice) -> list[Picture]:
    """For each method with batches in sequence: a small panel for each task, in it a line for each batch size."""
    from matplotlib.figure import Figure

    together: dict[tuple, list] = {}
    for series in choice.series:
        if not series.first.at_once:
            together.setdefault(series.first.key[:3], []).append(series)
    pictures = []
    for group in together.values():
        group = sorted(group, key=lambda series: series.first.edit_batch_size)
        if group[-1].first.edit_batch_size == 1:
            continue
        measures = {short(task): score(task, choice.metric) for task in choice.tasks}
        if len(choice.tasks) > 1:
            measures[MEAN] = mean_score(choice.tasks, choice.metric)
        lines = {name: [series.line(name, measure) for series in group] for name, measure in measures.items()}
        lines = {name: each for name, each in lines.items() if any(line.known for line in each)}
        if not lines:
            continue
        columns = min(_COLUMNS, len(lines))
        rows = -(-len(lines) // columns)
        width, height = 1.2 + columns * (_SMALL[0] + 0.35) + 1.2, 1.6 + rows * (_SMALL[1] + 0.4)
        figure = Figure(figsize=(width, height))
        counts = unique(p.n_operations for each in lines.values() for line in each for p in line.known)
        values = [p.value for each in lines.values() for line in each for p in line.known]
        looks = ramp(len(group))
        for i, (name, each) in enumerate(lines.items()):
            row, column = divmod(i, columns)
            left = 0.8 + column * (_SMALL[0] + 0.35)
            bottom = height - 0.8 - row * (_SMALL[1] + 0.4) - _SMALL[1]
            axes = figure.add_axes((left / width, bottom / height, _SMALL[0] / width, _SMALL[1] / height))
            lowest = i + columns >= len(lines)
            counts_axis(axes, counts, "operations" if lowest else "", _SMALL[0])
            if not lowest:
                axes.set_xlabel("")
                axes.tick_params(axis="x", labelbottom=False)
            share_axis(axes, values, choice.metric if column == 0 else "")
            if column:
                axes.tick_params(axis="y", labelleft=False)
            for line, style, series, shift in zip(each, looks, group, shifts(len(group)), strict=True):
                if line.known:
                    draw_line(axes, line, style, operations=True, bars=True, shift=shift)
                size = int(series.first.edit_batch_size)
                mark_collapsed(axes, [-(-n // size) for n in series.collapsed], style.colour, word=False)
            axes.set_title(name, loc="left", fontsize=9, fontweight="bold" if name == MEAN else "normal")
            if i == 0:
                first = axes
        handles = [first.plot([], [], **style.plot())[0] for style in looks]
        figure.legend(
            handles, [f"{series.first.edit_batch_size}" for series in group], title="facts in a batch",
            loc="upper left", bbox_to_anchor=((0.8 + columns * (_SMALL[0] + 0.35) - 0.2) / width, 1 - 0.7 / height),
            frameon=False, alignment="left",
        )  # fmt: skip
        held = [line for each in lines.values() for line in each if line.known]
        notes = words.intervals(held)
        notes += ["× the model had collapsed"] if any(series.collapsed for series in group) else []
        published = choice.published.of(group[0])
        unedited = {task: value for task, points in published.items() for n, value in points if n == 0}
        for axes, name in zip(figure.axes, lines, strict=True):
            task = next((task for task in choice.tasks if short(task) == name), None)
            if task in unedited:
                axes.plot([0], [unedited[task]], ls="none", marker="D", ms=4, mfc="white", mec="#333333", alpha=0.8,
                          zorder=4, label=f"_published {name}")  # fmt: skip
        if unedited:
            notes.append(choice.published.sentence(choice.metric, "hollow diamonds, unedited"))
        title = f"{group[0].first.method} on {group[0].where}: {choice.metric}, batches one after another"
        figure.text(0.8 / width, 1 - 0.4 / height, title, fontsize=10)
        bottom = height - 0.8 - rows * (_SMALL[1] + 0.4) - 0.2
        figure.text(
            0.8 / width, bottom / height, "\n".join(notes), va="top", fontsize=7.5, color="#555555", linespacing=1.4
        )
        told = [
            " ".join([f"{series.first.edit_batch_size} a batch:", _ends(lines, k)]) for k, series in enumerate(group)
        ]
        alt = f"{len(lines)} small line charts, {title}, against operations. {' '.join(told)}"
        file_name = group[0].file_name.removesuffix(f"-batch{group[0].first.edit_batch_size}")
        pictures.append(Picture(f"operations-{file_name}", "operations", title, alt, figure))
    return pictures


def _ends(lines: dict, k: int) -> str:
    told = []
    for name, each in lines.items():
        if each[k].known:
            first, last = each[k].known[0], each[k].known[-1]
            told.append(f"{name} from {first.value:.2f} to {last.value:.2f} after {last.n_operations} operations")
    return "; ".join(told) + "."
