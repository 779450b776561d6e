"""What a run must keep to in order to pass: the limits of a gate, and the YAML file they are read from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lm_eval_edit.errors import UserError, nearest

_TASK_KEYS = ("max_drop", "min_recovery", "metric", "higher_is_better")
_KEYS = ("max_drop", "min_recovery", "alpha", "seed", "tasks", "min")


@dataclass(frozen=True)
class TaskLimits:
    """The limits of one task; None leaves the gate's own.

    Attributes:
        max_drop: The largest drop allowed, in the metric's units.
        min_recovery: The smallest edited / base allowed. With both, the stricter one holds.
        metric: The metric to judge, instead of the first in the task's YAML.
        higher_is_better: The direction of that metric, where the task does not say.
    """

    max_drop: float | None = None
    min_recovery: float | None = None
    metric: str | None = None
    higher_is_better: bool | None = None


@dataclass(frozen=True)
class Gate:
    """What a run must keep to.

    Attributes:
        max_drop, min_recovery: For every task without limits of its own; None sets no such limit. `max_drop` is in
            points of a figure from 0 to 1; a metric on another scale needs a limit of its own, or a share.
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
        everyone: list[Gate | TaskLimits] = [self, *self.tasks.values()]
        for limits in everyone:
            drop, share = limits.max_drop, limits.min_recovery
            if drop is not None and not (_number(drop) and drop >= 0):
                raise UserError(f"max_drop={drop}: want a number of at least 0, such as 0.02")
            if share is not None and not (_number(share) and 0 < share <= 1):
                raise UserError(f"min_recovery={share}: want a share above 0 and up to 1, such as 0.95")
        for task, own in self.tasks.items():
            if not isinstance(task, str):
                raise UserError(f"tasks: {task!r} is no name of a task; quote it")
            if own.metric is not None and not isinstance(own.metric, str):
                raise UserError(f"tasks.{task}.metric={own.metric!r}: want the name of one metric")
            if own.higher_is_better not in (None, True, False):
                raise UserError(f"tasks.{task}.higher_is_better={own.higher_is_better!r}: want true or false")
        if not _number(self.alpha):
            raise UserError(f"alpha={self.alpha}: want a number")
        if not (isinstance(self.seed, int) and _number(self.seed) and self.seed >= 0):
            raise UserError(f"seed={self.seed}: want a whole number of at least 0")
        for name, floor in self.floors.items():
            if not (_number(floor) and isinstance(name, str) and "." in name):
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
