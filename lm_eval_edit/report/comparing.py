"""Every cell of a sweep held against its unedited model by `compare`, document by document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from lm_eval_edit.compare import Comparison, Row, Settings, compare_runs
from lm_eval_edit.errors import UserError
from lm_eval_edit.group_means import SeedRow, seed_rows
from lm_eval_edit.results import Run, load_run
from lm_eval_edit.sweep.reading import DONE, CellData, RowData, Sweep


@dataclass(frozen=True)
class Compared:
    """One cell beside the unedited model.

    Attributes:
        comparison: On the tasks that the unedited model was evaluated on too; None where there is none.
        why: Why there is none, or why it covers less than all tasks.
        tasks: All tasks of the unedited model.
    """

    row: RowData
    cell: CellData
    comparison: Comparison | None
    why: str | None
    tasks: tuple[str, ...]

    @property
    def headlines(self) -> dict[str, Row]:
        """Task -> its headline metric, before and after."""
        return {row.task: row for row in self.comparison.rows if row.headline} if self.comparison else {}

    @property
    def whole(self) -> bool:
        """Whether every task of the unedited model is compared."""
        return bool(self.tasks) and set(self.tasks) <= self.headlines.keys()

    @property
    def mean(self) -> Row | None:
        """The mean over the most tasks: that of the suite, or of all headline metrics; a lone task is its own mean.

        None where tasks are missing, so that means of different tasks are never held against each other, and where
        more is better in some tasks and worse in others.
        """
        if not self.whole:
            return None
        if len(self.headlines) == 1:
            return next(iter(self.headlines.values()))
        means = [row for row in self.comparison.groups if row.headline and len(row.members) == len(self.headlines)]
        return means[0] if means else None


def compare_sweep(sweep: Sweep, settings: Settings, *, progress: bool = False) -> list[Compared]:
    """Compare every cell with its model's unedited cell, rows and checkpoints in order.

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
    cells = [(row, cell) for row in sweep.rows for cell in row.cells]
    bar = tqdm(cells, desc="comparing", unit="cell", disable=not progress)
    return [_compared(row, cell, bases[row.baseline.folder], settings) for row, cell in bar]


def _base(sweep: Sweep, cell: CellData) -> Run | None:
    if cell.results_file is None or cell.status is None:
        return None
    try:
        return load_run(cell.results_file)
    except UserError as error:
        raise UserError(
            f"{sweep.root}: {error}\nA report reads the samples of every cell; run the sweep with log_samples: true"
        ) from None


def _compared(row: RowData, cell: CellData, base: Run | None, settings: Settings) -> Compared:
    tasks = tuple(base.tasks) if base else ()

    def without(why: str) -> Compared:
        return Compared(row, cell, None, why, tasks)

    if cell.n_edits in row.left_out:
        return without(row.left_out[cell.n_edits])
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
        comparison = compare_runs(base, edited, Settings(settings.alpha, settings.delta, settings.seed, common))
    except UserError as error:
        return without(str(error))
    missing = [task for task in tasks if task not in common]
    why = cell.reason or (f"not evaluated: {', '.join(missing)}" if missing else None)
    return Compared(row, cell, comparison, why if missing or cell.status != DONE else None, tasks)


def between_seeds(compared: Iterable[Compared], alpha: float) -> list[tuple[RowData, int, SeedRow]]:
    """(a row, edits, the mean difference over edit seeds with both intervals) wherever several seeds were compared."""
    together: dict[tuple, list[Compared]] = {}
    for each in compared:
        if each.mean is not None:
            together.setdefault((each.row.key, each.cell.n_edits), []).append(each)
    found = []
    for (_, n_edits), group in together.items():
        mean = group[0].mean
        for row in seed_rows([each.comparison for each in group], alpha):
            if (row.task, row.filter, row.metric) == (mean.task, mean.filter, mean.metric):
                found.append((group[0].row, n_edits, row))
    return found


def series(rows: Sequence[RowData]) -> list[list[RowData]]:
    """The rows, those together that differ only by their edit seed."""
    together: dict[tuple, list[RowData]] = {}
    for row in rows:
        together.setdefault(row.key, []).append(row)
    return list(together.values())


def below(sweep: Sweep, folder: Path) -> str:
    """A cell's folder as it is called within the sweep's."""
    return folder.relative_to(sweep.root).as_posix()
