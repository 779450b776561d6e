"""The collected cells as values, each beside the unedited model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_edit._support.files import read_json
from lm_eval_edit.comparison.baseline import thaw
from lm_eval_edit.comparison.combined import weighted_mean
from lm_eval_edit.comparison.compare import compare_runs
from lm_eval_edit.comparison.group_means import ABLE, OVERALL
from lm_eval_edit.comparison.pairing import PairingError
from lm_eval_edit.comparison.runs import Run
from lm_eval_edit.comparison.statistics import Estimate
from lm_eval_edit.comparison.verdicts import Comparison, Row, Settings
from lm_eval_edit.tasklib.measures import ABILITY

from .collect import BEFORE, UNEDITED

PERPLEXITY = "edithurt_perplexity"
#: What of each task is compared; everything else would be computed for nobody.
METRICS = ("score", "gold_logprob", "bits_per_byte")
SCORE, LOGPROB, BITS = METRICS
ALPHA = 0.05


@dataclass(frozen=True)
class Change:
    """A difference to another model on the same documents, in the direction in which more is better.

    Attributes:
        base: The other model's figure.
        seeds: The difference of each seed.
        low, high: The means of the seeds' intervals: the documents are the same, so two seeds say no more about others.
        ends: (low, high) of each seed.
    """

    base: float
    seeds: tuple[float, ...]
    ends: tuple[tuple[float, float], ...]

    @property
    def value(self) -> float:
        """The mean over the seeds."""
        return sum(self.seeds) / len(self.seeds)

    @property
    def low(self) -> float:
        """See the class."""
        return sum(low for low, _ in self.ends) / len(self.ends)

    @property
    def high(self) -> float:
        """See the class."""
        return sum(high for _, high in self.ends) / len(self.ends)

    @property
    def worse(self) -> bool:
        """Whether every seed's interval lies below 0."""
        return all(high < 0 for _, high in self.ends)

    @property
    def worse_once(self) -> bool:
        """Whether any seed's interval lies below 0."""
        return any(high < 0 for _, high in self.ends)

    @property
    def better(self) -> bool:
        """Whether every seed's interval lies above 0."""
        return all(low > 0 for low, _ in self.ends)

    def no_worse_than(self, delta: float) -> bool:
        """Whether every seed's interval ends above −δ."""
        return all(low >= -delta for low, _ in self.ends)


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        known: What `cells.json` has of it.
        run: What each document scored; None where it was not evaluated.
    """

    name: str
    known: Mapping[str, Any]
    run: Run | None

    @property
    def moved(self) -> float | None:
        """‖Δ‖ / ‖W‖ over the edited weights."""
        norms = self.known.get("moved")
        return norms["delta_norm"] / norms["weight_norm"] if norms else None

    def figure(self, task: str, metric: str) -> float | None:
        """A metric of a task; None where it is not there."""
        samples = self.run.samples.get((task, "none")) if self.run else None
        found = samples.metrics.get(metric) if samples else None
        return None if found is None else found.value

    def documents(self, task: str) -> int:
        """How many documents a task has; 0 where it was not asked."""
        samples = self.run.samples.get((task, "none")) if self.run else None
        return 0 if samples is None else len(samples)


class Cells:
    """All collected cells of a form.

    Args:
        folder: `results/FORM`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        content = read_json(folder / "cells.json")
        self.about: Mapping[str, Any] = content["about"]
        self._known: Mapping[str, Mapping[str, Any]] = content["cells"]
        self._compared: dict[tuple[str, str], Comparison | None] = {}

    @cached_property
    def all(self) -> dict[str, Cell]:
        """Cell by name."""
        found = {}
        for name, known in self._known.items():
            file = self.folder / f"{name}.json"
            found[name] = Cell(name, known, thaw(read_json(file), file) if file.is_file() else None)
        return found

    @cached_property
    def _edited(self) -> dict[tuple[str, int, int], Cell]:
        return {
            (cell.known["method"], cell.known["n_edits"], cell.known["seed"]): cell
            for cell in self.all.values()
            if cell.known["n_edits"]
        }

    @cached_property
    def asked(self) -> set[str]:
        """The tasks that any cell has figures of."""
        return {task for cell in self.all.values() if cell.run for task, _ in cell.run.samples}

    @cached_property
    def methods(self) -> list[str]:
        """The methods with an evaluated cell, in the design's order."""
        return list(dict.fromkeys(method for (method, _, _), cell in self._edited.items() if cell.run))

    @cached_property
    def seeds(self) -> list[int]:
        """The edit seeds."""
        return sorted({seed for _, _, seed in self._edited})

    def checkpoints(self, method: str) -> list[int]:
        """The checkpoints that every seed has."""
        counts = sorted({n for of, n, _ in self._edited if of == method})
        return [n for n in counts if self.at(method, n)]

    def at(self, method: str, n: int) -> list[Cell]:
        """The cells of all seeds; none where one of them was not evaluated."""
        found = [self._edited.get((method, n, seed)) for seed in self.seeds]
        return [cell for cell in found if cell] if found and all(cell and cell.run for cell in found) else []

    def equals(self, n: int) -> dict[str, str]:
        """Method -> the first method whose cells are equal to its own to the bit, in every seed, after so many edits:
        a threshold that was not reached, or nothing to remember yet. What did the same to the model is one observation.
        """
        found: dict[str, str] = {}
        here = [method for method in self.methods if self.at(method, n)]
        for place, method in enumerate(here):
            first = next((each for each in here[:place] if self._equal(each, method, n)), None)
            if first is not None:
                found[method] = first
        return found

    def _equal(self, one: str, other: str, n: int) -> bool:
        pairs = zip(self.at(one, n), self.at(other, n), strict=True)
        return all(a.known["moved"] == b.known["moved"] and same_figures(a.run, b.run) for a, b in pairs)

    def unedited(self, cell: Cell) -> Cell:
        """The unedited model as the same sweep found it."""
        return self.all[f"{cell.name.partition('/')[0]}/{UNEDITED}"]

    def before(self, cell: Cell) -> Cell | None:
        """The unedited model on the facts of the cell's row."""
        return self.all.get(f"{cell.name.partition('/')[0]}/{cell.known['method']}-{BEFORE}")

    @cached_property
    def first(self) -> Cell:
        """The unedited model, as the first sweep found it."""
        return next(cell for name, cell in self.all.items() if name.endswith(f"/{UNEDITED}"))

    # ------------------------------------------------------------------------------------------------------ comparison

    def compared(self, base: Cell, edited: Cell) -> Comparison | None:
        """Two cells on the tasks about ability; None where a task of one has no finite figures."""
        key = (base.name, edited.name)
        if key not in self._compared:
            assert base.run is not None and edited.run is not None, "only evaluated cells are compared"
            tasks = [task for (task, _), samples in base.run.samples.items() if samples.measures == ABILITY]
            try:
                found = compare_runs(base.run, edited.run, Settings(alpha=ALPHA, tasks=tasks, metrics=METRICS))
            except PairingError:
                found = None
            self._compared[key] = found
        return self._compared[key]

    def changes(self, method: str, n: int, kind: str, than: str | None = None) -> Change | None:
        """What a method's edits changed, over the seeds.

        Args:
            kind: `score`: the mean of the tasks that are not at floor; `gold_logprob`: the mean over the tasks that
                have it; `bits_per_byte`: the text's.
            than: Another method, instead of the unedited model.
        """
        pairs = [(cell, self.unedited(cell)) for cell in self.at(method, n)]
        if than is not None:
            others = {cell.known["seed"]: cell for cell in self.at(than, n)}
            pairs = [(cell, others[cell.known["seed"]]) for cell, _ in pairs if cell.known["seed"] in others]
        found = [self._change(base, cell, kind) for cell, base in pairs]
        known = [each for each in found if each is not None]
        if not known or len(known) < len(self.seeds):
            return None
        return Change(
            known[0][0], tuple(each.value for _, each in known), tuple((each.low, each.high) for _, each in known)
        )

    def _change(self, base: Cell, cell: Cell, kind: str) -> tuple[float, Estimate] | None:
        comparison = self.compared(base, cell)
        if comparison is None:
            return None
        if kind == SCORE:
            row = able_mean(comparison)
            return None if row is None else (row.base, row.gain)
        rows = [row for row in comparison.rows if row.metric == kind]
        if not rows:
            return None
        weights = [1 / len(rows)] * len(rows)
        return sum(row.base for row in rows) / len(rows), weighted_mean(
            [row.gain for row in rows], weights, alpha=ALPHA
        )[0]

    def mean(self, method: str, n: int, task: str, metric: str) -> float | None:
        """A figure's mean over the seeds."""
        return mean_of(cell.figure(task, metric) for cell in self.at(method, n))

    def moved(self, method: str, n: int) -> float | None:
        """The mean ‖Δ‖ / ‖W‖ over the seeds."""
        return mean_of(cell.moved for cell in self.at(method, n))


def same_figures(one: Run | None, other: Run | None) -> bool:
    """Whether two runs have the same figures for every document, to the bit."""
    if one is None or other is None or one.samples.keys() != other.samples.keys():
        return False
    for key, a in one.samples.items():
        b = other.samples[key]
        if a.metrics.keys() != b.metrics.keys():
            return False
        if not all(
            np.array_equal(a.metrics[name].counts, b.metrics[name].counts, equal_nan=True) for name in a.metrics
        ):
            return False
    return True


def able_mean(comparison: Comparison) -> Row | None:
    """The mean score of the tasks that are not at floor."""
    by_name = {row.task: row for row in comparison.groups}
    return by_name.get(ABLE) or by_name.get(OVERALL)


def mean_of(values: Iterator[float | None] | Sequence[float | None]) -> float | None:
    """The mean; None where there is no value, or one is missing or not finite."""
    listed = list(values)
    known = [value for value in listed if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known and len(known) == len(listed) else None
