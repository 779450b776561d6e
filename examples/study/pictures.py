"""The pictures of the page: what is left of the ability, what was written against what it cost, norm against damage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lm_eval_edit.plots.picture import Picture, drawing
from lm_eval_edit.plots.style import HEIGHT, INK, Look, figure_of, footer, grid, label_ends, look, panel

from .cells import BITS, LOGPROB, Cells
from .hypotheses import HANDFUL, MEASURES

PREFIX = "study-"
_TALL, _WIDE = 5.4, 5.2
TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


def pictures(cells: Cells) -> Iterator[Picture]:
    """All of them."""
    with drawing():
        yield ability(cells)
        yield tradeoff(cells)
        yield norms(cells)


def looks(cells: Cells) -> dict[str, Look]:
    """The look of each method, in all pictures the same."""
    return {method: look(i) for i, method in enumerate(cells.methods)}


def ability(cells: Cells) -> Picture:
    """For each method the change of the answers' log-probability at each checkpoint, with its interval."""
    methods = list(reversed(cells.methods))
    figure_look = {1: ("#56B4E9", "o"), 10: ("#0072B2", "s"), 50: ("#D55E00", "^")}
    _, axes = panel(_WIDE, _TALL)
    told: dict[str, list[str]] = {method: [] for method in cells.methods}
    drawn = set()
    for height, method in enumerate(methods):
        counts = cells.checkpoints(method)
        for place, n in enumerate(counts):
            change = cells.changes(method, n, LOGPROB)
            if change is None:
                continue
            colour, marker = figure_look.get(n, (INK, "D"))
            y = height + 0.22 * ((len(counts) - 1) / 2 - place)
            axes.plot([change.low, change.high], [y, y], color=colour, lw=1.2)
            axes.plot(
                [change.value], [y], color=colour, marker=marker, ms=5, ls="none",
                label=None if n in drawn else f"after {n} edit{'s' if n > 1 else ''}",
            )  # fmt: skip
            drawn.add(n)
            told[method].append(f"{method} after {n}: {change.value:.2f} ({change.low:.2f} to {change.high:.2f})")
    axes.axvline(0, color="#888888", lw=0.8, ls=(0, (4, 3)), zorder=1)
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(-0.7, len(methods) - 0.3)
    axes.set_xlabel("log-probability of the right answers, change in nats per token")
    grid(axes, "x")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8.5)
    title = "What editing cost: the right answers' log-probability beside the unedited model's"
    axes.set_title(title, loc="left")
    notes = ["mean of the tasks asked by likelihood; mean of the seeds, with the mean of their 95 % intervals"]
    footer(axes, notes, _TALL)
    words = "; ".join(each for method in told.values() for each in method)
    return Picture(f"{PREFIX}ability", "ability", title, f"{title}. {words}.", figure_of(axes))


def tradeoff(cells: Cells, n: int = HANDFUL) -> Picture:
    """Efficacy against the change of the answers' log-probability, a point a method."""
    found = {
        method: (efficacy, change.value)
        for method in cells.methods
        if (efficacy := cells.mean(method, n, "edithurt_efficacy", "em")) is not None
        and (change := cells.changes(method, n, LOGPROB)) is not None
    }
    title = f"What was written against what it cost, after {n} edits"
    return _scatter(
        cells, "tradeoff", title, found, "efficacy: share of the edits that are answered",
        "log-probability of the right answers, change", ["upper right is best"],
    )  # fmt: skip


def norms(cells: Cells, n: int = HANDFUL) -> Picture:
    """‖Δ‖/‖W‖ against the change of the text's bits per byte, a point a method."""
    found = {
        method: (moved, -change.value)
        for method in cells.methods
        if (moved := cells.moved(method, n)) and (change := cells.changes(method, n, BITS)) is not None
    }
    title = f"How far the weights moved against what the text costs more, after {n} edits"
    return _scatter(
        cells, "norms", title, found, "||Δ|| / ||W|| over the edited weights (log scale)",
        f"{MEASURES[BITS]}, change", ["lower is better"], log=True,
    )  # fmt: skip


def _scatter(
    cells: Cells,
    name: str,
    title: str,
    found: Mapping[str, tuple[float, float]],
    x: str,
    y: str,
    notes: Sequence[str],
    *,
    log: bool = False,
) -> Picture:
    """Points with their names beside the axes."""
    _, axes = panel(_WIDE, HEIGHT)
    if log:
        axes.set_xscale("log")
    styles = looks(cells)
    for method, (across, up) in found.items():
        style = styles[method]
        axes.plot([across], [up], color=style.colour, marker=style.marker, ms=8, mec="black", mew=0.5, ls="none")
    if log:
        low, high = axes.get_xlim()
        ticks = [each for each in TICKS if low <= each <= high]
        axes.set_xticks(ticks, [f"{each:g}" for each in ticks])
        axes.minorticks_off()
    axes.axhline(0, color="#888888", lw=0.8, ls=(0, (4, 3)), zorder=1)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    grid(axes)
    label_ends(axes, {method: (*found[method], styles[method]) for method in found}, HEIGHT, leaders=False)
    axes.set_title(title, loc="left")
    footer(axes, notes, HEIGHT)
    told = "; ".join(f"{method} {across:.2f}, {up:.2f}" for method, (across, up) in found.items())
    return Picture(f"{PREFIX}{name}", name, title, f"Scatter plot, {title}: {x}; {y}. {told}.", figure_of(axes))
