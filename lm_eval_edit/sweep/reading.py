"""A sweep's folder as values, for plots, reports and summaries. Reads files only: no model, no torch, no harness."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_eval_edit._support.files import read_json
from lm_eval_edit._support.terminal import one_line, printable
from lm_eval_edit.errors import UserError, in_one_line
from lm_eval_edit.sweep.design import is_plain
from lm_eval_edit.sweep.folder import COLLAPSED, DONE, FAILED, FORMAT, cell_state
from lm_eval_edit.tasklib import measures

__all__ = [
    "COLLAPSED", "DONE", "FAILED", "LEFT_OUT", "CellData", "RowData", "Sweep", "Value", "by_series", "load_sweep",
]  # fmt: skip

LEFT_OUT = "left out"  # of a checkpoint that the design asks for and no fact is there for
PREFIX = "edithurt_"  # of our own tasks
_IN_HEADER = ("design", "about_schedule", "about_model", "rows")
_OF_A_ROW = ("name", "model", "editor", "method", "dataset", "edit_seed", "edit_batch_size")
_IN_ROW = (*_OF_A_ROW, "checkpoints", "left_out")


@dataclass(frozen=True)
class Value:
    """One metric.

    Attributes:
        stderr: Its standard error; None where there is none: the harness has no formula, or a bootstrap only one fact.
        higher_is_better: None where the task does not say.
    """

    value: float
    stderr: float | None
    higher_is_better: bool | None = None


@dataclass(frozen=True)
class CellData:
    """One cell as it is on disk.

    Attributes:
        folder: Where it lies.
        status: done, collapsed, failed, left out, or None: not there yet, or damaged.
        reason: Why it has no figures, where it has none.
        record: Its cell.json; empty where there is none.
    """

    folder: Path
    n_edits: int
    n_operations: int
    status: str | None
    reason: str | None
    record: Mapping[str, Any]

    @property
    def results_file(self) -> Path | None:
        """Its results file, as `load_run` and `lm-eval-edit compare` take it."""
        return next((self.folder / name for name in self.record.get("files", ()) if name.startswith("results_")), None)

    @cached_property
    def results(self) -> Mapping[str, Any]:
        """The results file; empty where there is none."""
        return read_json(self.results_file) if self.results_file is not None and self.status is not None else {}

    @property
    def edit(self) -> Mapping[str, Any]:
        """What `edited_hf` recorded of its edits: `parameters` (norms per weight), `guards`, efficacy, seconds."""
        return (self.results.get("config") or {}).get("edit") or {}

    def groups(self) -> list[str]:
        """Names in the results that are groups (edithurt_suite), not tasks."""
        return [name for name in self.results.get("results", {}) if name not in self.results.get("configs", {})]

    def tasks(self) -> list[str]:
        """Names in the results that are tasks."""
        return [name for name in self.results.get("results", {}) if name in self.results.get("configs", {})]

    def measures(self, name: str) -> str:
        """What a task measures; of a group what all its tasks do, or `mixed`."""
        configs = self.results.get("configs") or {}
        if name in configs:
            return measures.measures(name, configs[name])
        children = (self.results.get("group_subtasks") or {}).get(name) or ()
        kinds = {self.measures(child) for child in children if child != name}
        return kinds.pop() if len(kinds) == 1 else "mixed" if kinds else measures.ABILITY

    def metrics(self, name: str) -> list[str]:
        """The metrics of a task or group, in its own order, the default filter's without its name."""
        found = []
        for key in self.results.get("results", {}).get(name, {}):
            metric, _, filter_name = key.partition(",")
            if filter_name and not metric.endswith("_stderr"):
                found.append(metric if filter_name == "none" else f"{metric},{filter_name}")
        return found

    def headline(self, task: str) -> str | None:
        """A task's or group's first metric, as `compare` takes it: the first in its YAML that is in the results."""
        config = (self.results.get("configs") or {}).get(task) or {}
        listed = [entry.get("metric") for entry in config.get("metric_list") or ()]
        found = [metric for metric in self.metrics(task) if self.value(task, metric) is not None]
        names = sorted(found, key=lambda metric: (*listed, metric.partition(",")[0]).index(metric.partition(",")[0]))
        return next(iter(names), None)

    def value(self, name: str, metric: str = "score") -> Value | None:
        """A metric of a task or group; None where the cell has it not."""
        metric, _, filter_name = metric.partition(",")
        filter_name = filter_name or "none"
        figures = self.results.get("results", {}).get(name, {})
        value = figures.get(f"{metric},{filter_name}")
        if not isinstance(value, (int, float)):
            return None
        stderr = figures.get(f"{metric}_stderr,{filter_name}")
        better = ((self.results.get("higher_is_better") or {}).get(name) or {}).get(metric)
        stderr = float(stderr) if isinstance(stderr, (int, float)) and math.isfinite(stderr) else None
        return Value(float(value), stderr, better)


@dataclass(frozen=True)
class RowData:
    """One model with one schedule of edits.

    Attributes:
        edit_batch_size: Facts per operation, or "all".
        baseline: The unedited model, shared by the model's rows.
        before: The unedited model on tasks about this row's own facts; None without such tasks.
        cells: The edited checkpoints, ascending, whatever their status.
        left_out: The checkpoints of the design that could not be reached, ascending, with the reason.
    """

    name: str
    model: str
    editor: str
    method: str
    dataset: str | None
    edit_seed: int | None
    edit_batch_size: int | str
    baseline: CellData
    before: CellData | None
    cells: tuple[CellData, ...]
    left_out: tuple[CellData, ...] = ()

    @property
    def at_once(self) -> bool:
        """Whether each checkpoint is one batch on the unedited model."""
        return self.edit_batch_size == "all"

    @property
    def series(self) -> str:
        """What rows that differ only by their seed have in common, for people: memit · batches of 10."""
        size = (
            "" if self.edit_batch_size == 1 else "one batch" if self.at_once else f"batches of {self.edit_batch_size}"
        )
        return " · ".join(part for part in (self.method, size) if part)

    @property
    def key(self) -> tuple:
        """What rows that differ only by their seed have in common."""
        return (self.model, self.method, self.dataset, self.edit_batch_size)

    @property
    def wanted(self) -> list[CellData]:
        """The cell of every checkpoint that the design asks for, those left out included, ascending."""
        return sorted((*self.cells, *self.left_out), key=lambda cell: cell.n_edits)


def by_series(rows: Iterable[RowData]) -> list[tuple[RowData, ...]]:
    """The rows, those together that differ only by their edit seed."""
    together: dict[tuple, list[RowData]] = {}
    for row in rows:
        together.setdefault(row.key, []).append(row)
    return [tuple(rows) for rows in together.values()]


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder.

    Attributes:
        header: sweep.json: name, description, design, figure, published.
        rows: In the design's order.
    """

    root: Path
    header: Mapping[str, Any]
    rows: tuple[RowData, ...] = field(default=())

    @property
    def name(self) -> str:
        """The design's name."""
        return str(self.header.get("name") or self.root.name)

    def cells(self, *, left_out: bool = False) -> Iterator[tuple[RowData | None, CellData]]:
        """Every cell once: (its row, or None for a shared baseline; the cell).

        Args:
            left_out: Those that could not be reached as well.
        """
        seen = set()
        for row in self.rows:
            if self.header["about_model"] and row.baseline.folder not in seen:
                seen.add(row.baseline.folder)
                yield None, row.baseline
            for cell in ([row.before] if row.before else []) + (row.wanted if left_out else list(row.cells)):
                yield row, cell

    def tasks(self) -> list[str]:
        """All tasks of all cells, in the order of the results."""
        return list(dict.fromkeys(task for _, cell in self.cells() for task in cell.tasks()))

    def groups(self) -> list[str]:
        """All groups of all cells."""
        return list(dict.fromkeys(group for _, cell in self.cells() for group in cell.groups()))

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset([*self.tasks(), *self.groups()])

    def short(self, name: str) -> str:
        """A task or group for people: without our prefix, unless that is another one's name."""
        stem = name.removeprefix(PREFIX)
        return one_line(name if stem in self._names else stem)


def load_sweep(root: str | Path) -> Sweep:
    """Read a sweep's folder, finished or not.

    Raises:
        UserError: no sweep.json there, or one that is of another version or incomplete.
    """
    root = Path(root)
    if not (root / "sweep.json").is_file():
        raise UserError(f"{root} holds no sweep (no sweep.json); give a folder that `lm-eval-edit sweep -o` wrote")
    header = read_json(root / "sweep.json")
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UserError(f"{root}/sweep.json is of another version of lm-eval-edit, which reads format {FORMAT}")
    missing = [key for key in _IN_HEADER if key not in header]
    missing += [f"{key} of a row" for key in _IN_ROW if any(key not in row for row in header.get("rows", ()))]
    if missing:
        raise UserError(
            f"{root}/sweep.json is incomplete: it has no {', '.join(missing)}; run the sweep again, into a new folder"
        )
    names = [row[key] for row in header["rows"] for key in ("model", "name")]
    if strange := [name for name in names if not is_plain(name)]:
        raise UserError(
            f"{root}/sweep.json names {printable(repr(strange[0]))} as the folder of a row: want names without a path. "
            f"Nothing outside {root} is read or written"
        )
    try:
        return Sweep(root, header, tuple(_rows(root, header)))
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{root}/sweep.json is damaged ({in_one_line(error)}); run the sweep again, elsewhere"
        ) from None


def _rows(root: Path, header: Mapping[str, Any]) -> Iterator[RowData]:
    baselines: dict[str, CellData] = {}
    for row in header["rows"]:
        model = row["model"]
        if model not in baselines:
            baselines[model] = _cell(root / model / "unedited", 0, 0)
        folder = root / model / row["name"]
        size = row["edit_batch_size"]
        before = folder / "n00000"
        left_out = {int(n): why for n, why in row["left_out"].items()}
        at = {n: (folder / f"n{n:05d}", n, 1 if size == "all" else -(-n // size))
              for n in (*row["checkpoints"], *left_out)}  # fmt: skip
        yield RowData(
            **{key: row[key] for key in _OF_A_ROW},
            baseline=baselines[model],
            before=_cell(before, 0, 0) if header["about_schedule"] or before.exists() else None,
            cells=tuple(_cell(*at[n]) for n in row["checkpoints"]),
            left_out=tuple(CellData(*at[n], LEFT_OUT, why, {}) for n, why in left_out.items()),
        )


def _cell(folder: Path, n_edits: int, n_operations: int) -> CellData:
    status, reason = cell_state(folder)
    record = read_json(folder / "cell.json") if status is not None else {}
    return CellData(folder, n_edits, n_operations, status, reason, record)


def summary_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """Every metric of every cell, one flat mapping each; cells without figures have one line with their status."""
    lines = []
    for row, cell in sweep.cells(left_out=True):
        what: dict[str, Any] = {
            "model": cell.folder.relative_to(sweep.root).parts[0],
            "row": row.name if row else "",
            "editor": row.editor if row else "none",
            "dataset": (row.dataset or "") if row else "",
            "edit_seed": row.edit_seed if row else "",
            "edit_batch_size": row.edit_batch_size if row else "",
            "n_edits": cell.n_edits,
            "n_operations": cell.n_operations,
            "status": cell.status or "missing",
        }
        names = [*cell.groups(), *cell.tasks()]
        for name in names:
            for metric in cell.metrics(name):
                if (value := cell.value(name, metric)) is not None:
                    stderr = "" if value.stderr is None else value.stderr
                    found = {"task": name, "metric": metric, "value": value.value, "stderr": stderr}
                    lines.append(what | found | {"measures": cell.measures(name)})
        if not names:
            lines.append(what)
    return lines
