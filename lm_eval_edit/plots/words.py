"""Sentences of pictures: small print and descriptions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lm_eval_edit.plots.series import Line, Series


def intervals(lines: Iterable[Line], *, bands: bool = False) -> list[str]:
    """What thin lines through points, or bands, are; nothing if there are none."""
    mark = "bands" if bands else "thin lines"
    seeds = {point.seeds for line in lines for point in line.known if point.high > point.low}
    several = sorted(seeds - {1})
    sentences = [f"{mark}: ± 1 standard error over documents"] if 1 in seeds else []
    if several:
        sentences.append(f"{mark}: 95 % t interval of the mean over {' or '.join(map(str, several))} edit seeds")
    return sentences


def lines(title: str, series: Sequence[Series], drawn: Sequence[Line], chart: str = "Line chart") -> str:
    """A chart in words: each line's first and last value."""
    told = []
    for line in drawn:
        first, last = line.known[0], line.known[-1]
        to = f" to {last.value:.2f} at {last.n_edits}" if last is not first else ""
        told.append(f"{line.name} {'from ' if to else ''}{first.value:.2f} at {first.n_edits}{to}")
    collapsed = [
        f" {one.label} collapsed at {', '.join(map(str, one.collapsed))} edits." for one in series if one.collapsed
    ]
    return f"{chart}, {title}, against the number of edits. {'; '.join(told)}.{''.join(collapsed)}"


def parameter(name: str) -> str:
    """A parameter's name for people: layer 5 mlp.c_proj."""
    found = re.search(r"(?:^|\.)(\d+)\.(.+)$", name)
    text = f"layer {found[1]} {found[2]}" if found else name
    return text.removesuffix(".weight")
