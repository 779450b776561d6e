"""Comparisons as a terminal table, markdown, or CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from lm_eval_edit._support.spreadsheet import csv_text as as_csv
from lm_eval_edit._support.terminal import one_line, printable
from lm_eval_edit.comparison import floors
from lm_eval_edit.comparison.as_json import left_out, row_json
from lm_eval_edit.comparison.compare import reported
from lm_eval_edit.comparison.floors import AT_FLOOR
from lm_eval_edit.comparison.group_means import SeedRow, mixed_groups
from lm_eval_edit.comparison.verdicts import INCONCLUSIVE, REGRESSED, UNHARMED, Comparison, Row

HEAD = (
    "task", "metric", "n", "base", "edited", "difference", "95% interval", "recovery", "p (Holm)", "lost/won",
    "verdict",
)  # fmt: skip
SEED_HEAD = ("method", "task", "metric", "seeds", "difference", "between seeds", "within a run")
_STYLES = {REGRESSED: "bold red", INCONCLUSIVE: "yellow"}


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A figure for tables; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "−")


def interval(low: float, high: float) -> str:
    """An interval for tables."""
    return f"[{number(low, sign=True)}, {number(high, sign=True)}]"


def p_value(p: float) -> str:
    """A p for tables: never 0."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def verdict(row: Row) -> str:
    """The verdict, with what it leaves open: no difference is said only together with what could have been seen."""
    if row.floor is not None:
        said = {UNHARMED: "identical answers; ", INCONCLUSIVE: ""}.get(row.verdict, f"{row.verdict}; ")
        return f"{said}{AT_FLOOR} ({row.floor})"
    flag = f"; {len(row.at_floor)} of {len(row.members or ())} tasks at floor" if row.at_floor else ""
    if row.verdict == UNHARMED:
        beyond = "" if row.identical else f" beyond {row.delta:g}"
        same = "identical answers; " if row.identical else ""
        return f"{row.verdict}{beyond} ({same}detectable: {_detectable(row)}{flag})"
    if row.verdict == INCONCLUSIVE:
        return f"{row.verdict} (detectable: {_detectable(row)}{flag})"
    return row.verdict + (f" ({flag[2:]})" if flag else "")


def _detectable(row: Row) -> str:
    return "no drop" if math.isinf(row.detectable) else number(row.detectable)


def cells(row: Row) -> tuple[str, ...]:
    """The cells of a row under `HEAD`."""
    name = row.task if row.filter in ("none", "") else f"{row.task} ({row.filter})"
    n = f"{row.n}" if row.cluster_field is None else f"{row.n} in {row.clusters}"
    recovered = "not defined" if row.recovery is None else f"{100 * row.recovery:.0f}%"
    d = row.difference
    flips = "" if row.flips is None else f"{row.flips.worse}/{row.flips.better}"
    if row.flips is not None and row.flips.lost_format:
        flips += f" ({row.flips.lost_format} by format)"
    found = (
        name, row.metric, n, number(row.base), number(row.edited), number(d.value, sign=True),
        interval(d.low, d.high), recovered, p_value(row.p_holm), flips, verdict(row),
    )  # fmt: skip
    return tuple(map(one_line, found))


def seed_cells(row: SeedRow) -> tuple[str, ...]:
    """The cells of a row under `SEED_HEAD`."""
    found = (
        row.method, row.task, row.metric, str(row.runs), number(row.difference, sign=True), interval(*row.between),
        interval(*row.within),
    )  # fmt: skip
    return tuple(map(one_line, found))


def noise_column(noise: Comparison | None) -> dict[tuple[str, str, str], str]:
    """(task, filter, metric) -> difference and changed documents between two unedited runs."""
    if noise is None:
        return {}
    return {
        (row.task, row.filter, row.metric): number(row.difference.value, sign=True)
        + ("" if row.flips is None else f" ({row.flips.worse + row.flips.better})")
        for row in (*noise.rows, *noise.groups)
    }


def title(comparison: Comparison) -> str:
    """What is compared."""
    return one_line(f"{comparison.base.label} → {comparison.edited.label}")


def _head(alpha: float, noise: Comparison | None) -> tuple[str, ...]:
    head = tuple(name.replace("95%", f"{100 * (1 - alpha):g}%") for name in HEAD)
    return head if noise is None else (*head[:-1], "noise", head[-1])


def _cells(row: Row, noise: dict[tuple[str, str, str], str], with_noise: bool) -> tuple[str, ...]:
    found = cells(row)
    return (*found[:-1], noise.get((row.task, row.filter, row.metric), ""), found[-1]) if with_noise else found


def print_tables(
    comparisons: Sequence[Comparison], seeds: Sequence[SeedRow], noise: Comparison | None, alpha: float
) -> None:
    """Print rich tables to standard output, as wide as they need to be when that is not a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    columns = noise_column(noise)
    for each in comparisons:
        table = Table(title=Text(title(each)), title_justify="left")
        for name in _head(alpha, noise):
            table.add_column(name, justify="left" if name in ("task", "metric", "verdict") else "right")
        last = None
        for row in (*each.rows, *each.groups):
            if last not in (None, row.task):
                table.add_section()
            last = row.task
            *start, end = _cells(row, columns, noise is not None)
            style = _STYLES[INCONCLUSIVE] if row.floor is not None else _STYLES.get(row.verdict, "")
            table.add_row(*map(Text, start), Text(end, style=style))  # texts: a name in brackets is no markup
        console.print(table)
    if seeds:
        table = Table(*SEED_HEAD, title="Between edit seeds", title_justify="left")
        for between in seeds:
            table.add_row(*map(Text, seed_cells(between)))
        console.print(table)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; pipes, angle brackets and controls in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_markdown_cell, line)) + " |" for line in lines)


def _markdown_cell(text: str) -> str:
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", one_line(text).replace("|", "\\|"))


def markdown(
    comparisons: Sequence[Comparison], seeds: Sequence[SeedRow], noise: Comparison | None, alpha: float
) -> str:
    """The tables as markdown."""
    columns = noise_column(noise)
    parts = []
    for each in comparisons:
        rows = [_cells(row, columns, noise is not None) for row in (*each.rows, *each.groups)]
        parts += [f"### {title(each)}", markdown_table(_head(alpha, noise), rows)]
    if seeds:
        parts += ["### Between edit seeds", markdown_table(SEED_HEAD, [seed_cells(row) for row in seeds])]
    return "\n\n".join(parts)


def csv_text(comparisons: Sequence[Comparison]) -> str:
    """One line for each row and run, with the names of the JSON; `interval` and `flips` in columns of their own."""
    records: list[dict[str, Any]] = []
    for each in comparisons:
        for row in (*each.rows, *each.groups):
            record = {"run": each.edited.label, "path": str(each.edited.path), **row_json(row)}
            record["low"], record["high"] = record.pop("interval")
            flips = record.pop("flips") or dict.fromkeys(("worse", "better", "lost_format", "lost_ability", "answers"))
            record.pop("members")
            record["at_floor"] = " ".join(row.at_floor)
            records.append(record | flips)
    return as_csv(list(records[0]), records)


def notices(comparisons: Sequence[Comparison]) -> list[str]:
    """What a reader should know beside the figures, each once."""
    found: dict[str, None] = {}
    for each in comparisons:
        found.update(dict.fromkeys((*each.base.notices, *each.edited.notices)))
        found.update(dict.fromkeys(_cautions(each)))
        for reason, tasks in left_out(each).items():
            found[f"left out of {len(tasks)} task{'s' * (len(tasks) > 1)}: {reason}"] = None
    return [printable(text) for text in found]


def _cautions(comparison: Comparison) -> list[str]:
    """What may be read into a comparison's figures and is not in them."""
    found = [
        f"{task}: its headline metric {why}{reported(comparison, task)}"
        for task, why in comparison.without_headline.items()
    ]
    if groups := mixed_groups(comparison.base, comparison.rows):
        found.append(f"{', '.join(groups)}: no mean, it mixes edit quality with ability")
    tasks = dict.fromkeys(task for task, _ in comparison.pairs)
    lost = {task: share for task, share in floors.lost_formats(comparison.base).items() if task in tasks}
    if advice := floors.format_advice(comparison.base.results, lost):
        found.append(advice)
    undefined: dict[str, list[str]] = {}
    for row in (*comparison.rows, *comparison.groups):
        if row.recovery_undefined and row.floor is None:
            undefined.setdefault(row.task, []).append(f"{row.metric}: {row.recovery_undefined}")
    found += [f"{task}: recovery is not defined ({'; '.join(whys)})" for task, whys in undefined.items()]
    unknown = {
        f"{row.task} {row.metric}"
        for row in comparison.rows
        if not comparison.pairs[row.task, row.filter].direction_known(row.metric)
    }
    if unknown:
        found.append(f"whether higher is better is not said of {', '.join(sorted(unknown))}; it is taken to be so")
    return found
