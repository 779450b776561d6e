"""The gate: may this model pass, given what the other one could do?

It fails closed. A run passes only where each task of the baseline is there, pairs document by document, and either is
answered identically or shows by its interval that the drop stays within its limit. Exit statuses: 0 pass, 1 a
regression (or an edit that does not hold), 2 inconclusive or unusable input.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lm_eval_edit import __version__
from lm_eval_edit.compare import INCONCLUSIVE, REGRESSED, Comparison, Row, Settings, compare_runs
from lm_eval_edit.comparison_json import row_json, run_json
from lm_eval_edit.errors import UserError, nearest
from lm_eval_edit.results import Metric, Run

PASS, REGRESSION, UNUSABLE = 0, 1, 2
STATUS = {PASS: "pass", REGRESSION: "regression", UNUSABLE: "inconclusive"}
_TASK_KEYS = ("max_drop", "min_recovery", "metric")
_KEYS = ("max_drop", "min_recovery", "alpha", "seed", "tasks", "min")


@dataclass(frozen=True)
class TaskLimits:
    """The limits of one task; None leaves the gate's own.

    Attributes:
        max_drop: The largest drop allowed, in the metric's units.
        min_recovery: The smallest edited / base allowed. With both, the stricter one holds.
        metric: The metric to judge, instead of the first in the task's YAML.
    """

    max_drop: float | None = None
    min_recovery: float | None = None
    metric: str | None = None


@dataclass(frozen=True)
class Gate:
    """What a run must keep to.

    Attributes:
        max_drop, min_recovery: For every task without limits of its own; None sets no such limit.
        alpha: Level of the tests over all tasks, and of the intervals.
        seed: Of the permutations and bootstraps.
        tasks: Task -> its own limits.
        floors: Name -> smallest value. A name is `efficacy.FIELD` (mean of what holds right after each edit),
            `retained.FIELD` (what holds after the last), or `TASK.METRIC` of the current run.
    """

    max_drop: float | None = 0.02
    min_recovery: float | None = None
    alpha: float = 0.05
    seed: int = 0
    tasks: Mapping[str, TaskLimits] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for limits in (self, *self.tasks.values()):
            drop, share = limits.max_drop, limits.min_recovery
            if drop is not None and not (_number(drop) and drop >= 0):
                raise UserError(f"max_drop={drop}: want a number of at least 0, such as 0.02")
            if share is not None and not (_number(share) and 0 < share <= 1):
                raise UserError(f"min_recovery={share}: want a share above 0 and up to 1, such as 0.95")
        for name, value in (("alpha", self.alpha), ("seed", self.seed)):
            if not _number(value):
                raise UserError(f"{name}={value}: want a number")
        for name, floor in self.floors.items():
            if not _number(floor) or "." not in name:
                raise UserError(f"min {name}={floor}: want NAME.FIELD=NUMBER, such as efficacy.em=0.9")
        if self.max_drop is None and self.min_recovery is None:
            raise UserError("a gate needs max_drop or min_recovery")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_gate(content: Any, where: str) -> Gate:
    """A gate from the content of a YAML file.

    Raises:
        UserError: an unknown key, or a value that is no limit.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where}: want a mapping with some of {', '.join(_KEYS)}")
    _check_keys(content, _KEYS, where)
    for key in ("tasks", "min"):
        if not isinstance(content.get(key) or {}, dict):
            raise UserError(f"{where}: {key}: want a mapping, got {content[key]!r}")
    tasks = {}
    for task, limits in (content.get("tasks") or {}).items():
        if not isinstance(limits, dict):
            raise UserError(f"{where}: tasks.{task}: want a mapping with some of {', '.join(_TASK_KEYS)}")
        _check_keys(limits, _TASK_KEYS, f"{where}: tasks.{task}")
        tasks[task] = TaskLimits(**limits)
    floors = content.get("min") or {}
    plain = {key: content[key] for key in ("max_drop", "min_recovery", "alpha", "seed") if key in content}
    return Gate(**plain, tasks=tasks, floors=floors)


def _check_keys(content: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in content:
        if key not in known:
            raise UserError(f"{where}: no such key {key}.{nearest(str(key), known)} Known are {', '.join(known)}")


# --------------------------------------------------------------------------------------------------------------- check


@dataclass(frozen=True)
class Finding:
    """What the gate says about one task or one floor.

    Attributes:
        name: The task or the floor.
        status: 0, 1 or 2, as the exit status.
        detail: One sentence with the figures.
        row: The comparison behind it; None for floors.
    """

    name: str
    status: int
    detail: str
    row: Row | None = None


@dataclass(frozen=True)
class Report:
    """The gate's answer.

    Attributes:
        findings: Tasks in the baseline's order, then floors.
        error: Why the input could not be used; None if it could.
        notices: What the reader should know besides.
        comparison: What the findings are from; None after an error.
    """

    findings: tuple[Finding, ...]
    error: str | None = None
    notices: tuple[str, ...] = ()
    comparison: Comparison | None = None

    @property
    def status(self) -> int:
        """1 if anything regressed, else 2 if anything is open or unusable, else 0. Nothing checked is unusable."""
        statuses = {finding.status for finding in self.findings}
        if REGRESSION in statuses:
            return REGRESSION
        return UNUSABLE if self.error or UNUSABLE in statuses or not statuses else PASS


def check(baseline: Run, current: Run, gate: Gate) -> Report:
    """Hold a run against a baseline.

    Raises:
        UserError: the input cannot be used: tasks are missing, samples do not pair, values are not finite, a limit
            or floor names what is not there.
    """
    for task in gate.tasks:
        if task not in baseline.tasks:
            raise UserError(f"tasks.{task}: the baseline has no such task.{nearest(task, baseline.tasks)}")
    extra = [task for task in current.tasks if task not in baseline.tasks]
    headlines = {task: limits.metric for task, limits in gate.tasks.items() if limits.metric}
    limits: dict[str, float] = {}
    for samples in baseline.samples.values():
        name = headlines.get(samples.task, next(iter(samples.metrics), None))
        if name in samples.metrics and math.isfinite(samples.metrics[name].value):
            limits.setdefault(samples.task, limit(samples.task, samples.metrics[name], gate))
    settings = Settings(gate.alpha, 0.0, gate.seed, baseline.tasks, None, headlines, limits)
    comparison = compare_runs(baseline, current, settings)
    rows = [row for row in comparison.rows if row.headline]
    if missing := [task for task in baseline.tasks if task not in {row.task for row in rows}]:
        raise UserError(f"{', '.join(missing)}: no metric of the task can be compared")
    findings = [_finding(row) for row in rows]
    findings += [_floor(name, floor, current) for name, floor in gate.floors.items()]
    notices = [*baseline.notices, *current.notices]
    if extra:
        notices.append(f"not in the baseline, so not checked: {', '.join(extra)}")
    return Report(tuple(findings), None, tuple(notices), comparison)


def limit(task: str, base: Metric, gate: Gate) -> float:
    """The largest drop that a task may show, in the metric's units: the stricter of its two limits."""
    own = gate.tasks.get(task, TaskLimits())
    drop = gate.max_drop if own.max_drop is None else own.max_drop
    share = gate.min_recovery if own.min_recovery is None else own.min_recovery
    limits = [] if drop is None else [drop]
    if share is not None:
        limits.append(base.value * (1 - share if base.higher_is_better else 1 / share - 1))
    return max(0.0, min(limits))


def _finding(row: Row) -> Finding:
    gain = row.gain
    status = {REGRESSED: REGRESSION, INCONCLUSIVE: UNUSABLE}.get(row.verdict, PASS)
    figures = (
        f"{row.metric} {row.base:.4f} → {row.edited:.4f} ({row.difference.value:+.4f}, "
        f"interval {row.difference.low:+.4f} to {row.difference.high:+.4f}, p {row.p_holm:.2g})"
    )
    if row.identical:
        detail = f"{figures}: all {row.n} documents are answered identically"
    elif status == PASS:
        detail = f"{figures}: within the allowed drop of {row.delta:.4g}"
        if gain.low < -row.delta:
            detail = f"{figures}: improved"
    elif status == REGRESSION:
        detail = f"{figures}: a real drop, not shown to stay within {row.delta:.4g}"
    else:
        detail = (
            f"{figures}: too few documents to tell whether the drop stays within {row.delta:.4g} "
            f"({row.n} documents could show a drop of {row.detectable:.3g})"
        )
    return Finding(row.task, status, detail, row)


def _floor(name: str, floor: float, run: Run) -> Finding:
    value = _floor_value(name, run)
    if not math.isfinite(value):
        raise UserError(f"{name} is {value}")
    sign = "at least" if value >= floor else "below"
    return Finding(name, PASS if value >= floor else REGRESSION, f"{value:.4g} is {sign} {floor:g}")


def _floor_value(name: str, run: Run) -> float:
    source, _, key = name.rpartition(".")
    edit = run.edit
    if source in ("efficacy", "retained"):
        records = edit.get("after_each_edit") if source == "efficacy" else [(edit.get("guards") or {}).get("retained")]
        records = [record for record in records or () if record]
        if not records:
            raise UserError(f"{name}: {run.path} records no edits; was the model edited?")
        known = [field for field in records[0] if field != "n"]
        if any(key not in record or key == "n" for record in records):
            raise UserError(f"{name}: no such field.{nearest(key, known)} There are {', '.join(known)}")
        # A record may be about several facts of one batch.
        weights = [record.get("n", 1) for record in records]
        return sum(w * float(record[key]) for w, record in zip(weights, records, strict=True)) / sum(weights)
    figures = (run.results.get("results") or {}).get(source)
    if figures is None:
        known = ["efficacy", "retained", *(run.results.get("results") or {})]
        raise UserError(f"{name}: {run.path} has no {source}.{nearest(source, known)}")
    found = [value for full, value in figures.items() if full.partition(",")[0] == key]
    if len(found) != 1 or not isinstance(found[0], int | float):
        metrics = sorted({full.partition(",")[0] for full, value in figures.items() if isinstance(value, float)})
        raise UserError(f"{name}: want one metric {key} of {source}, found {len(found)} among {', '.join(metrics)}")
    return float(found[0])


def to_json(report: Report, gate: Gate) -> dict[str, Any]:
    """The report as `schemas/check.schema.json` describes."""
    comparison = report.comparison
    return {
        "schema": "lm-eval-edit check 1",
        "version": __version__,
        "status": report.status,
        "verdict": STATUS[report.status],
        "error": report.error,
        "gate": dataclasses.asdict(gate) | {"tasks": {k: dataclasses.asdict(v) for k, v in gate.tasks.items()}},
        "baseline": run_json(comparison.base) if comparison else None,
        "current": run_json(comparison.edited) if comparison else None,
        "findings": [
            {
                "name": finding.name,
                "status": finding.status,
                "detail": finding.detail,
                "row": row_json(finding.row) if finding.row else None,
            }
            for finding in report.findings
        ],
        "notices": list(report.notices),
    }
