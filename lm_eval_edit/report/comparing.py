"""Every cell of a sweep held against its unedited model by `compare`, document by document."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm.auto import tqdm

from lm_eval_edit.comparison.compare import compare_runs, reported
from lm_eval_edit.comparison.group_means import SeedRow, on_one_scale, seed_rows
from lm_eval_edit.comparison.pairing import PairingError, pair_runs
from lm_eval_edit.comparison.results import load_run
from lm_eval_edit.comparison.runs import Run
from lm_eval_edit.comparison.verdicts import Comparison, Row, Settings
from lm_eval_edit.errors import UserError
from lm_eval_edit.sweep.reading import DONE, CellData, RowData, Sweep, by_series
from lm_eval_edit.tasklib.measures import ABILITY


@dataclass(frozen=True)
class Compared:
    """One cell beside the unedited model.

    Attributes:
        comparison: On the tasks that the unedited model was evaluated on too; None where there is none.
        why: Why there is none, or why it covers less than all tasks.
        tasks: All tasks of the unedited model.
        broken: Those of them that cannot be compared because the edited model's figure is no finite number.
    """

    row: RowData
    cell: CellData
    comparison: Comparison | None
    why: str | None
    tasks: tuple[str, ...]
    broken: tuple[str, ...] = ()

    @property
    def headlines(self) -> dict[str, Row]:
        """Task -> its headline metric, before and after."""
        return {row.task: row for row in self.comparison.rows if row.headline} if self.comparison else {}

    @property
    def judged(self) -> dict[str, Row]:
        """The headline metrics that say what was lost: of ability, never mixed with those about the edits themselves.

        Where every task is about the edits, those. A perplexity beside scores is not among them: a drop of 0.02 is
        something else there.
        """
        ability = {task: row for task, row in self.headlines.items() if row.measures == ABILITY}
        return {row.task: row for row in on_one_scale(list((ability or self.headlines).values()))}

    @property
    def able(self) -> dict[str, Row]:
        """Those that can show damage: not at floor in the unedited model."""
        return {task: row for task, row in self.judged.items() if row.floor is None}

    @property
    def whole(self) -> bool:
        """Whether every task of the unedited model is compared."""
        return bool(self.tasks) and set(self.tasks) <= self.headlines.keys()

    @property
    def mean(self) -> Row | None:
        """The mean over all judged tasks: that of the suite, or of their headline metrics; a lone task is its own mean.

        None where tasks are missing, so that means of different tasks are never held against each other, and where
        more is better in some tasks and worse in others.
        """
        return self._mean_of(self.judged) if self.whole else None

    @property
    def able_mean(self) -> Row | None:
        """The same over the tasks that can show damage; None where none can."""
        return self._mean_of(self.able) if self.whole else None

    def _mean_of(self, rows: Mapping[str, Row]) -> Row | None:
        if len(rows) == 1:
            return next(iter(rows.values()))
        if not rows or self.comparison is None:
            return None
        means = [
            row
            for row in self.comparison.groups
            if row.headline and row.members is not None and row.members.keys() == rows.keys()
        ]
        return means[0] if means else None


def compare_sweep(sweep: Sweep, settings: Settings, *, progress: bool = False) -> list[Compared]:
    """Compare every cell with its model's unedited cell, rows and checkpoints in order, those left out included.

    Args:
        settings: Level and seed; its tasks are not used.
        progress: Show a progress bar.

    Raises:
        UserError: no cell was evaluated yet, or an unedited model without samples.
    """
    bases = {
        folder: _base(sweep, cell) for folder, cell in {row.baseline.folder: row.baseline for row in sweep.rows}.items()
    }
    if not any(cell.results for _, cell in sweep.cells()):
        raise UserError(f"{sweep.root} has no evaluated cell yet; run the sweep first")
    cells = [(row, cell) for row in sweep.rows for cell in row.wanted]
    bar = tqdm(cells, desc="comparing", unit="cell", disable=not progress)
    return [_compared(sweep, row, cell, bases[row.baseline.folder], settings) for row, cell in bar]


def _base(sweep: Sweep, cell: CellData) -> Run | None:
    if cell.results_file is None or cell.status is None:
        return None
    try:
        return load_run(cell.results_file)
    except UserError as error:
        raise UserError(
            f"{sweep.root}: {error}\nA report reads the samples of every cell; run the sweep with log_samples: true"
        ) from None


def _compared(sweep: Sweep, row: RowData, cell: CellData, base: Run | None, settings: Settings) -> Compared:
    tasks = tuple(base.tasks) if base else ()

    def without(why: str) -> Compared:
        return Compared(row, cell, None, why, tasks)

    if cell.status is None:
        return without(cell.reason or "not there yet")
    if cell.results_file is None:
        return without(cell.reason or cell.status)
    if base is None:
        return without("no task of the unedited model to compare with")
    try:
        edited = load_run(cell.results_file)
        common = [task for task in base.tasks if task in edited.tasks]
        if not common:
            return without(cell.reason or "none of the unedited model's tasks was evaluated")
        comparison, apart = _as_far_as_paired(base, edited, settings, common)
    except UserError as error:
        return without(_within(sweep, str(error)))
    missing = [task for task in tasks if task not in common]
    said = []
    if missing or cell.status != DONE:
        said.append(cell.reason or f"not evaluated: {', '.join(missing)}")
    said += [_within(sweep, problem) for problems in apart.values() for problem in problems]
    if comparison is not None:
        said += [
            f"{task}: its headline metric {why}{reported(comparison, task)}"
            for task, why in comparison.without_headline.items()
        ]
    broken = tuple(task for task in apart if _not_finite(base, edited, task))
    return Compared(row, cell, comparison, "; ".join(said) or None, tasks, broken)


def _as_far_as_paired(
    base: Run, edited: Run, settings: Settings, tasks: Sequence[str]
) -> tuple[Comparison | None, dict[str, list[str]]]:
    """The comparison of those tasks whose documents can be paired, and for each of the others why not."""
    try:
        return compare_runs(base, edited, replace(settings, tasks=tasks)), {}
    except PairingError:
        apart = {}
    for task in tasks:
        try:
            pair_runs(base, edited, [task])
        except PairingError as error:
            apart[task] = error.problems
    kept = [task for task in tasks if task not in apart]
    return compare_runs(base, edited, replace(settings, tasks=kept)) if kept else None, apart


def _not_finite(base: Run, edited: Run, task: str) -> bool:
    """Whether the task's headline metric was a finite number and is none after the edits."""
    for key, samples in base.samples.items():
        name = samples.headline
        if key[0] == task and name is not None and (before := samples.metrics.get(name)) is not None:
            after = edited.samples[key].metrics.get(name) if key in edited.samples else None
            return after is not None and math.isfinite(before.value) and not math.isfinite(after.value)
    return False


def _within(sweep: Sweep, text: str) -> str:
    """A message with files as they are called within the sweep's folder: where that lay helps nobody else."""
    return text.replace(f"{sweep.root}/", "")


def between_seeds(sweep: Sweep, compared: Iterable[Compared], alpha: float) -> list[tuple[RowData, int, SeedRow]]:
    """(a row, edits, the mean difference over edit seeds with both intervals) wherever several seeds were compared."""
    whole = [each for each in compared if each.mean is not None]
    found = []
    for rows in by_series(sweep.rows):
        cells = [each for each in whole if each.row.key == rows[0].key]
        for n_edits in sorted({each.cell.n_edits for each in cells}):
            group = [each for each in cells if each.cell.n_edits == n_edits]
            mean = group[0].mean
            assert mean is not None, "the others have been left out"
            for row in seed_rows([each.comparison for each in group if each.comparison is not None], alpha):
                if (row.task, row.filter, row.metric) == (mean.task, mean.filter, mean.metric):
                    found.append((group[0].row, n_edits, row))
    return found


def below(sweep: Sweep, folder: Path) -> str:
    """A cell's folder as it is called within the sweep's."""
    return folder.relative_to(sweep.root).as_posix()
