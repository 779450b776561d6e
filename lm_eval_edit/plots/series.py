"""What is drawn, as numbers: lines over checkpoints with their intervals, from a sweep's cells. No matplotlib here.

Intervals. Rows that differ by nothing but their edit seed are one series. With one seed v the interval is

    v ± s,    s the harness's standard error: other documents might have been drawn.

With k seeds and values v_1..v_k it is Student's interval of their mean, other facts might have been drawn:

    v̄ ± t_{k−1, 1−α/2} · s / √k,    s² = Σ (v_i − v̄)² / (k − 1),    α = 0.05;

seeds that agree in every digit have shown no spread, and there is no interval.

The mean of tasks is unweighted, as the suite's is; its standard error is √(Σ s_i²) / (number of tasks).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from lm_eval_edit.comparison.combined import between_runs
from lm_eval_edit.comparison.floors import NEAR_ZERO
from lm_eval_edit.sweep.reading import COLLAPSED, DONE, FAILED, CellData, RowData, Sweep, Value, by_series
from lm_eval_edit.tasklib.measures import EDIT_QUALITY

ALPHA = 0.05
MEAN = "mean"
EFFICACY = "edithurt_efficacy"

Item = TypeVar("Item")
Measure = Callable[[RowData, CellData], Value | None]  # cells at 0 edits included


@dataclass(frozen=True)
class Point:
    """One value of a line.

    Attributes:
        low, high: Its interval; both equal to `value` where nothing is known of its spread.
        seeds: Over how many edit seeds.
    """

    n_edits: int
    n_operations: int
    value: float
    low: float
    high: float
    seeds: int = 1


@dataclass(frozen=True)
class Line:
    """A measure over the checkpoints of a series; None where a checkpoint has no value."""

    name: str
    points: tuple[Point | None, ...]

    @cached_property
    def known(self) -> list[Point]:
        """The points that are there."""
        return [point for point in self.points if point is not None]


@dataclass(frozen=True)
class Series:
    """Rows that differ by nothing but their edit seed, those that have not begun left out."""

    rows: tuple[RowData, ...]

    @property
    def first(self) -> RowData:
        """What all rows share can be read off here."""
        return self.rows[0]

    @property
    def label(self) -> str:
        """The method, and how it takes its facts."""
        return self.first.series

    @property
    def where(self) -> str:
        """Model and data set, for titles."""
        return f"{self.first.model}, {self.dataset} facts" if self.dataset else self.first.model

    @property
    def dataset(self) -> str | None:
        """The data set's name, without folder and ending."""
        return Path(self.first.dataset).stem if self.first.dataset else None

    @property
    def where_name(self) -> str:
        """Model and data set, for a picture's name."""
        return joined([self.first.model, self.dataset])

    @property
    def file_name(self) -> str:
        """For a picture's name: what the series is, without blanks."""
        row = self.first
        size = "at_once" if row.at_once else "" if row.edit_batch_size == 1 else f"batch{row.edit_batch_size}"
        return joined([row.model, row.method, self.dataset, size])

    @property
    def seeds(self) -> int:
        """How many edit seeds it has."""
        return len(self.rows)

    @cached_property
    def checkpoints(self) -> list[int]:
        """Numbers of edits, 0 first."""
        return sorted({0} | {cell.n_edits for row in self.rows for cell in row.cells})

    @cached_property
    def collapsed(self) -> Mapping[int, int]:
        """Checkpoint -> how many of the rows could not reach it with a working model, ascending; without the others."""
        found = Counter(cell.n_edits for row in self.rows for cell in row.cells if cell.status == COLLAPSED)
        return dict(sorted(found.items()))

    def collapse(self, n: int) -> str:
        """The word for a collapsed checkpoint, with the number of seeds where it is not all of them."""
        count = self.collapsed[n]
        return "collapsed" if count == self.seeds else f"collapsed ({count} of {self.seeds} seeds)"

    def line(self, name: str, measure: Measure) -> Line:
        """A measure at every checkpoint. One that a seed lacks is a gap: a mean over the others would flatter."""
        return Line(name, tuple(self._point(n, measure) for n in self.checkpoints))

    def _point(self, n: int, measure: Measure) -> Point | None:
        measured = [_finite(_measured(row, n, measure)) for row in self.rows]
        values = [value for value in measured if value is not None]
        if len(values) < len(measured):
            return None
        operations = min(1, n) if self.first.at_once else -(-n // int(self.first.edit_batch_size))
        return Point(n, operations, *interval(values), len(values))


def joined(words: Iterable[str | None]) -> str:
    """Words as a file's name."""
    return "-".join(re.sub(r"[^\w.+]+", "_", word) for word in words if word)


def _measured(row: RowData, n: int, measure: Measure) -> Value | None:
    if n == 0:
        cells = [cell for cell in (row.before, row.baseline) if cell is not None]
    else:
        cells = [cell for cell in row.cells if cell.n_edits == n and cell.status == DONE]
    return next((value for cell in cells if (value := measure(row, cell)) is not None), None)


def _finite(value: Value | None) -> Value | None:
    return value if value is not None and math.isfinite(value.value) else None


def interval(values: Sequence[Value]) -> tuple[float, float, float]:
    """(value, low, high): one value with its standard error, or the mean over seeds with Student's interval.

    Both ends are the value where nothing is known of its spread: no standard error, or seeds that agree.
    """
    if len(values) > 1 and len({value.value for value in values}) == 1:
        return values[0].value, values[0].value, values[0].value
    if len(values) > 1:
        found = between_runs([value.value for value in values], alpha=ALPHA)
        return found.value, found.low, found.high
    (one,) = values
    half = one.stderr if one.stderr is not None and math.isfinite(one.stderr) else 0.0
    return one.value, one.value - half, one.value + half


# ------------------------------------------------------------------------------------------------------------ measures


def score(task: str, metric: str) -> Measure:
    """A task's metric."""
    return lambda row, cell: cell.value(task, metric)


def mean_score(tasks: Sequence[str], metric: str) -> Measure:
    """The unweighted mean of tasks; None where one of them is not there."""

    def measure(row: RowData, cell: CellData) -> Value | None:
        values = [value for task in tasks if (value := cell.value(task, metric)) is not None]
        if not values or len(values) < len(tasks):
            return None
        stderrs = [value.stderr for value in values if value.stderr is not None]
        stderr = math.sqrt(sum(each**2 for each in stderrs)) / len(values) if len(stderrs) == len(values) else None
        ways = {value.higher_is_better for value in values}
        better = ways.pop() if len(ways) == 1 else None
        return Value(sum(value.value for value in values) / len(values), stderr, higher_is_better=better)

    return measure


def retained(tasks: Sequence[str], metric: str) -> Measure:
    """The mean of tasks over the unedited model's: r = m_n / m_0, with stderr² = (s_n² + r² s_0²) / m_0².

    None where m_0 is so near 0 that a share of it says nothing. Where lower is better it is m_0 / m_n.
    Both models were asked the same documents; that their errors go together is left out, so the interval is rather too
    wide.
    """
    mean = mean_score(tasks, metric)

    def measure(row: RowData, cell: CellData) -> Value | None:
        part, whole = mean(row, cell), mean(row, row.baseline)
        if part is None or whole is None:
            return None
        if part.higher_is_better is False:
            part, whole = whole, part
        if whole.value < NEAR_ZERO:
            return None  # a share of next to nothing
        if cell.n_edits == 0:
            return Value(1.0, 0.0)
        ratio = part.value / whole.value
        if part.stderr is None or whole.stderr is None:
            return Value(ratio, None)
        return Value(ratio, math.hypot(part.stderr, ratio * whole.stderr) / whole.value)

    return measure


def relative_norm(parameter: str) -> Measure:
    """||Delta|| / ||W|| of a parameter, 0 for the unedited model."""

    def measure(row: RowData, cell: CellData) -> Value | None:
        if cell.n_edits == 0:
            return Value(0.0, None)
        moved = cell.edit.get("parameters")
        if not moved:
            return None
        # Editors choose where to write; a matrix that is not named has not been written to yet.
        norm = moved[parameter]["relative_norm"] if parameter in moved else 0.0
        return Value(float(norm), None)

    return measure


def efficacy(row: RowData, cell: CellData) -> Value | None:
    """The score of `edithurt_efficacy`."""
    return cell.value(EFFICACY, "score")


def recalled(row: RowData, cell: CellData) -> Value | None:
    """What `edited_hf` found after the last edit: the share of edited prompts answered with the new object (em)."""
    found = (cell.edit.get("guards") or {}).get("retained") or {}
    em, n = found.get("em"), found.get("n") or 0
    if not isinstance(em, (int, float)):
        return None
    return Value(float(em), math.sqrt(em * (1 - em) / (n - 1)) if n > 1 else None)


# ---------------------------------------------------------------------------------------------------------- a sweep's


def all_series(sweep: Sweep) -> list[Series]:
    """The series of a sweep in its own order, without the rows that have not begun.

    A row that has begun counts even if all it has is a failure: its series then has gaps. Series with neither a
    finished nor a collapsed cell are left out.
    """
    groups = [tuple(filter(_begun, rows)) for rows in by_series(sweep.rows)]
    return [
        Series(rows) for rows in groups if any(cell.status in (DONE, COLLAPSED) for row in rows for cell in row.cells)
    ]


def _begun(row: RowData) -> bool:
    return any(cell.status in (DONE, COLLAPSED, FAILED) or cell.reason for cell in row.cells)


def gaps(sweep: Sweep) -> list[str]:
    """A sentence for every cell that has nothing to draw, those included that could not be reached."""
    lines = []
    for _, cell in sweep.cells(left_out=True):
        if cell.status == DONE:
            continue
        state = cell.status or ("damaged" if cell.reason else "not there yet")
        name = cell.folder.relative_to(sweep.root).as_posix()
        lines.append(f"{name}: {state}" + (f" ({cell.reason})" if cell.reason else ""))
    return lines


def about_edits(sweep: Sweep) -> set[str]:
    """Tasks that ask about the edits themselves: what an edit is for, not what it must leave alone."""
    return {task for _, cell in sweep.cells() for task in cell.tasks() if cell.measures(task) == EDIT_QUALITY}


def unique(items: Iterable[Item]) -> list[Item]:
    """Without repeats, in order."""
    return list(dict.fromkeys(items))
