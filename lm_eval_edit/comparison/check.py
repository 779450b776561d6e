"""The gate: may this model pass, given what the other one could do?

It fails closed. A run passes only where each task of the baseline is there, pairs document by document, and either is
answered identically or shows by its interval that the drop stays within its limit. Exit statuses: 0 pass, 1 a
regression (or an edit that does not hold), 2 inconclusive or unusable input.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_edit import __version__
from lm_eval_edit.comparison.as_json import REVISION, row_json, run_json
from lm_eval_edit.comparison.compare import bounds, compare_runs, reported
from lm_eval_edit.comparison.floors import AT_FLOOR, format_advice, lost_formats
from lm_eval_edit.comparison.gate import Gate, TaskLimits, read_gate
from lm_eval_edit.comparison.logged_metrics import Metric
from lm_eval_edit.comparison.other_engines import warnings
from lm_eval_edit.comparison.runs import Run
from lm_eval_edit.comparison.verdicts import INCONCLUSIVE, REGRESSED, Comparison, Row, Settings
from lm_eval_edit.errors import UserError, nearest

__all__ = [
    "PASS", "REGRESSION", "STATUS", "UNUSABLE", "Finding", "Gate", "Report", "TaskLimits", "check", "limit",
    "read_gate", "to_json",
]  # fmt: skip

PASS, REGRESSION, UNUSABLE = 0, 1, 2
STATUS = {PASS: "pass", REGRESSION: "regression", UNUSABLE: "inconclusive"}


@dataclass(frozen=True)
class Finding:
    """What the gate says about one task or one floor.

    Attributes:
        name: The task or the floor.
        status: 0, 1 or 2, as the exit status.
        detail: One sentence with the figures.
        row: The comparison behind it; None for floors.
        shows: Whether it says anything: not of a task whose unedited score leaves nothing to lose.
    """

    name: str
    status: int
    detail: str
    row: Row | None = None
    shows: bool = True


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


def check(baseline: Run, current: Run, gate: Gate, *, cluster: str | None = None) -> Report:
    """Hold a run against a baseline.

    Args:
        cluster: As the runs were read with.

    Raises:
        UserError: the input cannot be used: tasks are missing, samples do not pair, values are not finite, a limit
            or floor names what is not there.
    """
    for task in gate.tasks:
        if task not in baseline.tasks:
            raise UserError(f"tasks.{task}: the baseline has no such task.{nearest(task, baseline.tasks)}")
    baseline, current = (_directed(run, gate) for run in (baseline, current))
    extra = [task for task in current.tasks if task not in baseline.tasks]
    headlines = {task: limits.metric for task, limits in gate.tasks.items() if limits.metric}
    limits: dict[str, float] = {}
    for samples in baseline.samples.values():
        name = headlines.get(samples.task, samples.headline or next(iter(samples.metrics), None))
        if name is not None and name in samples.metrics and math.isfinite(samples.metrics[name].value):
            limits.setdefault(samples.task, limit(samples.task, samples.metrics[name], gate))
    settings = Settings(gate.alpha, 0.0, gate.seed, baseline.tasks, None, headlines, limits)
    comparison = compare_runs(baseline, current, settings)
    rows = [row for row in comparison.rows if row.headline]
    if problems := _unusable(comparison, rows, gate):
        raise UserError("\n".join(problems))
    findings = [_finding(row) for row in rows]
    notices = [*baseline.notices, *current.notices]
    notices += warnings(comparison, settings, cluster=cluster, advice="make the baseline with the same engine")
    if extra:
        notices.append(f"not in the baseline, so not checked: {', '.join(extra)}")
    if advice := format_advice(baseline.results, lost_formats(baseline)):
        notices.append(advice)
    error = None
    if not any(finding.shows for finding in findings):
        error = "every task is at floor: what the baseline cannot do, nothing can damage; use tasks that it can do"
    findings += [_floor(name, floor, current) for name, floor in gate.floors.items()]
    return Report(tuple(findings), error, tuple(notices), comparison)


def _directed(run: Run, gate: Gate) -> Run:
    """The run with the directions that the gate gives to metrics whose task does not say."""
    samples = dict(run.samples)
    for key, each in run.samples.items():
        own = gate.tasks.get(key[0], TaskLimits())
        name = own.metric or each.headline
        if own.higher_is_better is None or name is None or name not in each.metrics:
            continue
        metric = each.metrics[name]
        if metric.direction_known and metric.higher_is_better != own.higher_is_better:
            said = "higher" if metric.higher_is_better else "lower"
            raise UserError(f"tasks.{key[0]}.higher_is_better: the task itself says that a {said} {name} is better")
        told = dataclasses.replace(metric, higher_is_better=own.higher_is_better, direction_known=True)
        samples[key] = dataclasses.replace(each, metrics={**each.metrics, name: told})
    return dataclasses.replace(run, samples=samples)


def _unusable(comparison: Comparison, rows: Sequence[Row], gate: Gate) -> list[str]:
    """What keeps tasks from being judged. No other metric takes the place of a task's own."""
    problems = []
    for task, why in comparison.without_headline.items():
        names = [name for (of, _), pair in comparison.pairs.items() if of == task for name in pair.metrics]
        there = f"there are {', '.join(names)}" if names else "there is none"
        problems.append(
            f"{task}: its headline metric {why}{reported(comparison, task)}. To judge another one, name it in a "
            f"--config file: tasks: {{{task}: {{metric: NAME}}}}; {there}"
        )
    for row in rows:
        pair, own = comparison.pairs[row.task, row.filter], gate.tasks.get(row.task, TaskLimits())
        if not pair.direction_known(row.metric):
            problems.append(
                f"{row.task}: its results do not say whether a higher {row.metric} is better; a --config file can: "
                f"tasks: {{{row.task}: {{higher_is_better: true}}}}"
            )
        low, high = bounds(pair.base.metrics[row.metric], pair.edited.metrics[row.metric])
        share = gate.min_recovery if own.min_recovery is None else own.min_recovery
        if own.max_drop is None and share is not None and row.base < 0:
            problems.append(
                f"{row.task}: {row.metric} ({row.base:.4g}, now {row.edited:.4g}) is no amount of which a share could "
                f"be left, so min_recovery says nothing of it; give the task its own max_drop in a --config file: "
                f"tasks: {{{row.task}: {{max_drop: NUMBER}}}}"
            )
        elif not math.isfinite(high - low) and own.max_drop is None and share is None:
            problems.append(
                f"{row.task}: {row.metric} ({row.base:.4g}, now {row.edited:.4g}) is not on the scale from 0 to 1 that "
                f"a max_drop of {gate.max_drop:g} is meant for; give the task its own in a --config file: "
                f"tasks: {{{row.task}: {{max_drop: NUMBER}}}}, or min_recovery, which is a share"
            )
    return problems


def limit(task: str, base: Metric, gate: Gate) -> float:
    """The largest drop that a task may show, in the metric's units: the stricter of its two limits."""
    own = gate.tasks.get(task, TaskLimits())
    drop = gate.max_drop if own.max_drop is None else own.max_drop
    share = gate.min_recovery if own.min_recovery is None else own.min_recovery
    if own.max_drop is None and share is not None and not math.isfinite(base.bounds[1]):
        drop = None  # meant for figures from 0 to 1
    limits = [] if drop is None else [drop]
    if share is not None and base.value >= 0:  # there is no share of a log-probability
        limits.append(base.value * (1 - share if base.higher_is_better else 1 / share - 1))
    return max(0.0, min(limits, default=0.0))


def _finding(row: Row) -> Finding:
    gain = row.gain
    status = {REGRESSED: REGRESSION, INCONCLUSIVE: UNUSABLE}.get(row.verdict, PASS)
    figures = (
        f"{row.metric} {row.base:.4f} → {row.edited:.4f} ({row.difference.value:+.4f}, "
        f"interval {row.difference.low:+.4f} to {row.difference.high:+.4f}, p {row.p_holm:.2g})"
    )
    if row.floor is not None and status == UNUSABLE and gain.low >= -row.delta:
        return Finding(row.task, PASS, f"{figures}: {AT_FLOOR} ({row.floor}); it counts for nothing", row, shows=False)
    if row.identical:
        detail = f"{figures}: all {row.n} documents are answered identically"
    elif status == PASS:
        detail = f"{figures}: within the allowed drop of {row.delta:.4g}"
        if gain.low < -row.delta:
            detail = f"{figures}: improved"
    elif status == REGRESSION:
        detail = f"{figures}: a real drop, not shown to stay within {row.delta:.4g}"
    else:
        shown = f"a drop of {row.detectable:.3g}" if math.isfinite(row.detectable) else "no drop at all"
        detail = (
            f"{figures}: too few documents to tell whether the drop stays within {row.delta:.4g} "
            f"({row.n} documents could show {shown})" + (f"; {AT_FLOOR} ({row.floor})" if row.floor else "")
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
        told = edit.get("after_each_edit") if source == "efficacy" else [(edit.get("guards") or {}).get("retained")]
        records: list[Mapping[str, Any]] = [record for record in told or () if record]
        if not records:
            raise UserError(f"{name}: {run.path} records no edits; was the model edited?")
        known = [field for field in records[0] if field != "n"]
        if any(key not in record or key == "n" for record in records):
            raise UserError(f"{name}: no such field.{nearest(key, known)} There are {', '.join(known)}")
        # A record may be about several facts of one batch.
        weights = [record.get("n", 1) for record in records]
        mean: float = sum(w * float(record[key]) for w, record in zip(weights, records, strict=True)) / sum(weights)
        return mean
    figures = (run.results.get("results") or {}).get(source)
    if figures is None:
        known = ["efficacy", "retained", *(run.results.get("results") or {})]
        raise UserError(f"{name}: {run.path} has no {source}.{nearest(source, known)}")
    found = [value for full, value in figures.items() if full.partition(",")[0] == key]
    if len(found) != 1 or not isinstance(found[0], int | float):
        metrics = sorted({full.partition(",")[0] for full, value in figures.items() if isinstance(value, float)})
        raise UserError(f"{name}: want one metric {key} of {source}, found {len(found)} among {', '.join(metrics)}")
    if ((run.results.get("higher_is_better") or {}).get(source) or {}).get(key) is False:
        raise UserError(
            f"{name}: a lower {key} is better, so a smallest value keeps nothing out; limit its rise in a "
            f"--config file: tasks: {{{source}: {{metric: {key}, max_drop: NUMBER}}}}"
        )
    return float(found[0])


def to_json(report: Report, gate: Gate) -> dict[str, Any]:
    """The report as `schemas/check.schema.json` describes."""
    comparison = report.comparison
    return {
        "schema": "lm-eval-edit check 1",
        "revision": REVISION,
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
