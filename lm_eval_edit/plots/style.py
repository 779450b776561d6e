"""How lines look and where words go: colours, markers, axes of edits, labels that do not cover each other.

Colours are Okabe and Ito's (2008), which colour-blind readers tell apart; their yellow, hardly visible on white, is
replaced by an olive, their black is kept for means. Every line has a marker and dashes of its own as well, and its
name beside its end, so that nothing depends on colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lm_eval_edit.plots.series import Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C2B", "#777777")
MARKERS = "os^DvPX*<>d"
DASHES = ((), (5, 1.5), (1.5, 1.2), (6, 1.5, 1.5, 1.5))
INK, EDGE, GREY = "#222222", "#333333", "#dddddd"
SMALL_PRINT: dict[str, Any] = {"fontsize": 7.5, "color": "#555555", "linespacing": 1.4}
WIDTH, HEIGHT = 5.2, 3.4  # of a panel's axes, inches
_LOG_FROM = 20  # checkpoints that span more than this ratio are drawn on a logarithmic axis


@dataclass(frozen=True)
class Look:
    """How one line is drawn."""

    colour: str
    marker: str
    dashes: tuple[float, ...] = ()
    width: float = 1.3

    def plot(self) -> dict:
        """As keywords of `Axes.plot`."""
        return {
            "color": self.colour, "marker": self.marker, "dashes": self.dashes or (None, None), "lw": self.width,
            "ms": 7 if self.marker == "*" else 5, "mec": "white", "mew": 0.5,
        }  # fmt: skip


MEAN_LOOK = Look("#000000", "o", (), 2.6)


def look(index: int) -> Look:
    """The look of the line with this index: marker and dashes together, which need no colour, repeat after 44 lines."""
    return Look(COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)], DASHES[index % len(DASHES)])


def ramp(count: int, *, fill: bool = False) -> list[Look]:
    """Looks for ordered things (batch sizes): light to dark in one hue, so that grey keeps the order.

    Args:
        fill: For areas with an edge, which may be lighter than lines.
    """
    from matplotlib.colors import to_hex

    light, dark = np.array([0.72, 0.83, 0.93] if fill else [0.38, 0.64, 0.87]), np.array([0.03, 0.12, 0.28])
    steps = np.linspace(0, 1, count) if count > 1 else np.array([0.5])
    return [
        Look(to_hex(light + step * (dark - light)), MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)])
        for i, step in enumerate(steps)
    ]


# ---------------------------------------------------------------------------------------------------------------- axes


def panel(width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """A figure with one set of axes of this size in inches; it is saved with what stands around them, no more."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width + 3, height + 2))
    axes = figure.add_axes((0.8 / (width + 3), 1 / (height + 2), width / (width + 3), height / (height + 2)))
    return figure, axes


def figure_of(axes: Axes) -> Figure:
    """The figure in which a panel's axes stand."""
    from matplotlib.figure import SubFigure

    figure = axes.figure
    assert not isinstance(figure, SubFigure), "panels are made in figures of their own"
    return figure


def grid(axes: Axes, axis: Literal["both", "x", "y"] = "both") -> None:
    """Faint lines behind everything."""
    axes.grid(axis=axis, color=GREY, lw=0.6)
    axes.set_axisbelow(True)


def counts_axis(axes: Axes, counts: Sequence[int], label: str, width: float) -> None:
    """An x axis of edits or operations with its ticks at the checkpoints.

    Linear; if the counts span more than a factor of 20, logarithmic from the smallest on with 0 beside it.

    Args:
        counts: All that occur, 0 included.
        width: Of the axes in inches, to leave out numbers that have no room.
    """
    counts = sorted(set(counts))
    above = [n for n in counts if n > 0]
    logarithmic = bool(above) and above[-1] > _LOG_FROM * above[0]
    if logarithmic:
        axes.set_xscale("symlog", linthresh=above[0], linscale=0.6)
        label += " (log scale)"
    scale = axes.xaxis.get_transform().transform
    places = np.asarray(scale(np.array(counts, dtype=float)), dtype=float)
    span = max(float(np.ptp(places)), 1e-9)
    edge = 0.04 * span if span > 1e-9 else 1
    back = axes.xaxis.get_transform().inverted().transform
    axes.set_xlim(*(float(back(np.array([place]))[0]) for place in (places[0] - edge, places[-1] + edge)))
    axes.set_xticks(counts, _with_room(counts, places / span * width * 0.92))
    axes.minorticks_off()
    axes.set_xlabel(label)


def _with_room(counts: Sequence[int], inches: np.ndarray) -> list[str]:
    """The counts as words, empty where they would touch the next; the last one always stays."""
    words = [f"{n:,}" for n in counts]
    kept, edge = [""] * len(words), np.inf
    for i in reversed(range(len(words))):
        half = (len(words[i]) + 1) * 0.08 / 2
        if inches[i] + half <= edge or i == len(words) - 1:
            kept[i], edge = words[i], inches[i] - half
    return kept


def share_axis(axes: Axes, values: Sequence[float], label: str) -> None:
    """A y axis from 0 to 1, or as far as the values go, 0 included, where the metric is no share."""
    values = [value for value in values if np.isfinite(value)]
    low, top = min(values, default=0.0), max(values, default=1.0)
    if low >= 0 and top <= 1:
        axes.set_ylim(-0.01, 1.02)
        axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    elif 0 < 100 * low < top:  # a perplexity that explodes
        axes.set_yscale("log")
        axes.set_ylim(0.8 * low, 1.25 * top)
        label += " (log scale)"
    else:
        low, top = min(low, 0.0), max(top, 0.0)
        room = 0.05 * (top - low)
        axes.set_ylim(low - room if low else 0, top + room if top else 0)
    axes.set_ylabel(label)
    grid(axes, "y")


# --------------------------------------------------------------------------------------------------------------- lines


def draw_line(
    axes: Axes, line: Line, style: Look, *, operations: bool = False, bars: bool = False, shift: float = 0.0
) -> None:
    """One line with its intervals; it is interrupted where a checkpoint has no value.

    Args:
        operations: Against the number of operations instead of edits.
        bars: Intervals are drawn as bars, which stay legible where they are long, instead of a band.
        shift: Moves the bars to the side, in points, so that those of several lines do not cover each other.
    """
    from matplotlib.transforms import ScaledTranslation

    x = [np.nan if p is None else p.n_operations if operations else p.n_edits for p in line.points]
    y, low, high = (
        np.array([np.nan if p is None else getattr(p, name) for p in line.points]) for name in ("value", "low", "high")
    )
    axes.plot(x, y, zorder=3 if style is MEAN_LOOK else 2.5, label=line.name, **style.plot())
    spread_out = high > low
    if bars and spread_out.any():
        beside = axes.transData + ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)
        drawn = axes.vlines(
            np.array(x, dtype=float)[spread_out], low[spread_out], high[spread_out], color=style.colour, lw=1.1,
            alpha=0.8, zorder=2, label=f"_interval {line.name}",
        )  # fmt: skip
        drawn.set_transform(beside)
    elif spread_out.any():
        axes.fill_between(
            x, low, high, color=style.colour, alpha=0.14, lw=0, zorder=1.5, label=f"_interval {line.name}"
        )


def shifts(count: int) -> list[float]:
    """Shifts for the bars of so many lines, in points; they stay beside their markers however many there are."""
    gap = min(2.2, 14 / count)
    return [(i - (count - 1) / 2) * gap for i in range(count)]


def mark_collapsed(axes: Axes, places: Sequence[float], colour: str = INK, words: Sequence[str] = ()) -> None:
    """A cross on the axis for each checkpoint whose model had collapsed.

    Args:
        words: What stands at each of them, once where neighbours have the same; none without.
    """
    if not places:
        return
    axes.plot(
        places, [0.0] * len(places), ls="none", marker="x", ms=7, mew=1.8, color=colour, clip_on=False, zorder=5,
        transform=axes.get_xaxis_transform(), label="collapsed",
    )  # fmt: skip
    for i, (place, word) in enumerate(zip(places, words, strict=False)):
        if i and word == words[i - 1]:
            continue
        axes.annotate(
            word, (place, 0), xytext=(0, 8), xycoords=axes.get_xaxis_transform(),
            textcoords="offset points", rotation=90, ha="center", va="bottom", fontsize=8, color=colour,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1}, zorder=6,
        )  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- labels


def spread(wanted: Sequence[float], distance: float, top: float = 1.0) -> np.ndarray:
    """Places as near to the wanted ones as a distance between neighbours allows, at most `top`."""
    order = np.lexsort((-np.arange(len(wanted)), np.asarray(wanted)))  # of equals, the first is on top
    places = np.array(wanted, dtype=float)[order]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + distance)
    if len(places):
        places[-1] = min(places[-1], top)
    for i in range(len(places) - 2, -1, -1):
        places[i] = min(places[i], places[i + 1] - distance)
    out = np.empty(len(places))
    out[order] = places
    return out


def label_ends(
    axes: Axes, ends: Mapping[str, tuple[float, float, Look]], height: float, *, leaders: bool = True
) -> None:
    """Each line's marker and name to the right of the axes, at the height of its end or as near as there is room.

    Args:
        ends: Name -> (x, y, look) of a line's last point, in data units.
        height: Of the axes in inches.
        leaders: Draw a thin line from each end to its name.
    """
    names = list(ends)
    to_axes = (axes.transData + axes.transAxes.inverted()).transform
    at = [to_axes(ends[name][:2]) for name in names]
    places = spread([y for _, y in at], min(0.165, height / max(len(names), 1)) / height)
    for name, (x, y), place in zip(names, at, places, strict=True):
        style = ends[name][2]
        if leaders:
            axes.plot(
                [min(x + 0.012, 1.0), 1.025, 1.04], [y, place, place], transform=axes.transAxes, color="#aaaaaa",
                lw=0.5, clip_on=False, zorder=1,
            )  # fmt: skip
        axes.plot(
            [1.04, 1.075, 1.11], [place] * 3, transform=axes.transAxes, clip_on=False, markevery=[1], **style.plot()
        )
        weight = "bold" if style is MEAN_LOOK else "normal"
        axes.text(1.125, place, name, transform=axes.transAxes, va="center", fontsize=8.5, color=INK, weight=weight)


def diamonds(axes: Axes, points: Sequence[tuple[float, float]], name: str) -> None:
    """Published values where lines of their own would be too much."""
    if points:
        axes.plot(
            *zip(*points, strict=True), ls="none", marker="D", ms=4, mfc="white", mec=EDGE, alpha=0.8, zorder=4,
            label=f"_published {name}",
        )  # fmt: skip


def footer(axes: Axes, sentences: Sequence[str], height: float) -> None:
    """Small print under the axes, one sentence a line.

    Args:
        height: Of the axes in inches.
    """
    if sentences:
        axes.text(0, -0.65 / height, "\n".join(sentences), transform=axes.transAxes, va="top", **SMALL_PRINT)
