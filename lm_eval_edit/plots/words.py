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


def lines(title: str, axis: str, series: Series | Sequence[Series], drawn: Sequence[Line]) -> str:
    """A line chart in words: each line's first and last value."""
    told = []
    for line in drawn:
        first, last = line.known[0], line.known[-1]
        if first is last:
            told.append(f"{line.name} {first.value:.2f} at {first.n_edits} {axis}")
        else:
            told.append(f"{line.name} from {first.value:.2f} at {first.n_edits} to {last.value:.2f} at {last.n_edits}")
    collapsed = []
    for each in [series] if isinstance(series, Series) else series:
        if each.collapsed:
            collapsed.append(f" {each.label} collapsed at {', '.join(map(str, each.collapsed))} edits.")
    count = f"{len(drawn)} lines" if len(drawn) > 1 else "1 line"
    return f"Line chart, {title}, against {axis}; {count}: {'; '.join(told)}.{''.join(collapsed)}"


def parameter(name: str) -> str:
    """A parameter's name for people: layer 5 mlp.c_proj."""
    found = re.search(r"(?:^|\.)(\d+)\.(.+)$", name)
    text = f"layer {found[1]} {found[2]}" if found else name
    return text.removesuffix(".weight")
