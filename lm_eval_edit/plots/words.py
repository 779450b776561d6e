"""Sentences of pictures: small print and descriptions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lm_eval_edit.plots.series import Line, Series


def intervals(lines: Iterable[Line], *, bands: bool = False) -> list[str]:
    """What thin lines through points, or bands, are; nothing if there are none.

    Where lines have intervals of different kinds, each sentence names its lines.
    """
    mark = "bands" if bands else "thin lines"
    named: dict[int, dict[str, None]] = {}  # number of seeds -> lines
    for line in lines:
        for point in line.known:
            if point.high > point.low:
                named.setdefault(point.seeds, {})[line.name] = None
    sentences = []
    for seeds in sorted(named):
        of = f" of {', '.join(named[seeds])}" if len(named) > 1 else ""
        what = "± 1 standard error over documents" if seeds == 1 else (
            f"95 % t interval of the mean over {seeds} edit seeds, none where they agree"
        )  # fmt: skip
        sentences.append(f"{mark}{of}: {what}")
    return sentences


def lines(title: str, series: Sequence[Series], drawn: Sequence[Line], chart: str = "Line chart") -> str:
    """A chart in words: each line's first and last value."""
    told = []
    for line in drawn:
        first, last = line.known[0], line.known[-1]
        to = f" to {last.value:.2f} at {last.n_edits}" if last is not first else ""
        told.append(f"{line.name} {'from ' if to else ''}{first.value:.2f} at {first.n_edits}{to}")
    gone = [f" {collapsed(one)}." for one in series if one.collapsed]
    return f"{chart}, {title}, against the number of edits. {'; '.join(told)}.{''.join(gone)}"


def collapsed(series: Series) -> str:
    """Where a series collapsed: rome collapsed (1 of 2 seeds) at 20 edits, collapsed at 50, 100 edits."""
    found: dict[str, list[str]] = {}
    for n in series.collapsed:
        found.setdefault(series.collapse(n), []).append(str(n))
    return f"{series.label} " + ", ".join(f"{word} at {', '.join(counts)} edits" for word, counts in found.items())


def from_where(series: Series) -> str:
    """The same for a label: × from 20 (1 of 2 seeds)."""
    n = next(iter(series.collapsed))
    return f"× from {n:,}{series.collapse(n).removeprefix('collapsed')}"


def parameter(name: str) -> str:
    """A parameter's name for people: layer 5 mlp.c_proj."""
    found = re.search(r"(?:^|\.)(\d+)\.(.+)$", name)
    text = f"layer {found[1]} {found[2]}" if found else name
    return text.removesuffix(".weight")
