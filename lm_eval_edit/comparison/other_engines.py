"""Two runs of different engines, or in different dtypes: what is told, and how much the pair differs without any edit.

An engine's own arithmetic changes answers as edits do. How many of them, a base evaluated in both tells: the noise
floor of that pair of engines. A sweep's folder holds the base of its own engine (`MODEL/unedited`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lm_eval_edit.comparison.compare import compare_runs
from lm_eval_edit.comparison.pairing import PairingError
from lm_eval_edit.comparison.results import load_run
from lm_eval_edit.comparison.runs import Run
from lm_eval_edit.comparison.verdicts import Comparison, Settings
from lm_eval_edit.errors import UserError
from lm_eval_edit.harness.engines import engine_of


def engines_differ(base: Run, edited: Run, tasks: Iterable[str | None] = (None,)) -> str | None:
    """How the engines of two runs differ, as a clause; None where they do not, or where a file does not say.

    Args:
        tasks: Whose engines are meant, where a run has several.
    """
    for task in tasks:
        first, second = engine_of(base.results, task), engine_of(edited.results, task)
        if first is not None and second is not None and first.differs(second):
            return f"{first} and {second}"
    return None


def base_beside(edited: Run, *, cluster: str | None = None) -> Run | None:
    """The unedited model of the sweep that a run is a cell of; None where it is of none, or its base is not there."""
    folder = edited.path.parent
    if not (folder / "cell.json").is_file():
        return None
    found = folder.parent.parent / "unedited"
    if folder == found or not (found / "cell.json").is_file():
        return None
    try:
        return load_run(found, cluster=cluster)
    except UserError:
        return None


def noise_floor(base: Run, edited: Run, settings: Settings, *, cluster: str | None = None) -> Comparison | None:
    """The comparison of a base with the base of another run's engine; None where there is none of both.

    Args:
        base: The unedited model, in one engine.
        edited: A run of the other engine, a cell of a sweep whose unedited model was evaluated there.
    """
    if base.edit.get("n_edits") or engines_differ(base, edited) is None:
        return None
    other = base_beside(edited, cluster=cluster)
    if other is None or engines_differ(edited, other) is not None or not _same_weights(base, other):
        return None
    runs = (base, edited, other)
    common = tuple(task for task in settings.tasks or base.tasks if all(task in run.tasks for run in runs))
    if not common:
        return None
    headlines = {task: metric for task, metric in settings.headlines.items() if task in common}
    try:
        return compare_runs(base, other, replace(settings, tasks=common, headlines=headlines))
    except (PairingError, UserError):
        return None


def _same_weights(one: Run, other: Run) -> bool:
    """Whether two unedited runs are of one model, as far as their files say."""
    names = {run.edit.get("weights_fingerprint") for run in (one, other)} - {None}
    dtypes = {str((run.results.get("config") or {}).get("model_dtype")) for run in (one, other)}
    return len(names) < 2 or len(dtypes) > 1  # in another dtype the same model has other weights


def warnings(
    comparison: Comparison,
    settings: Settings,
    *,
    cluster: str | None = None,
    advice: str = "give a base of the same engine, or as --noise the unedited model in the other engine",
) -> list[str]:
    """What must be known of a comparison of different engines; empty for one of the same.

    Args:
        cluster: As the runs were read with.
        advice: What to do where the noise floor is not known.
    """
    how = engines_differ(comparison.base, comparison.edited, dict.fromkeys(task for task, _ in comparison.pairs))
    if how is None:
        return []
    said = f"different engines: {how}: a part of the differences is the engines' own arithmetic"
    floor = noise_floor(comparison.base, comparison.edited, settings, cluster=cluster)
    if floor is None:
        return [f"{said}; {advice}"]
    return [f"{said}. The unedited model in both: {floor_text(floor)}"]


def floor_text(floor: Comparison) -> str:
    """The noise floor in one line: each task's headline figure in both engines, and how many documents changed."""
    parts = []
    for row in floor.rows:
        if row.headline:
            changed = int(floor.pairs[row.task, row.filter].answers_changed.sum())
            parts.append(f"{row.task} {row.metric} {row.difference.value:+.3g}, {changed} of {row.n} answers changed")
    return "; ".join(parts)
