"""Results files of lm-eval: found, and read as values (`runs.py`).

Reads what `lm_eval --output_path FOLDER --log_samples` writes (0.4.12 and 0.4.13; one layout, in which 0.4.12 counts
`n-samples` by the last metric alone), made by any model on any tasks, and the frozen baselines of `baseline.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from lm_eval_edit._support.files import read_json
from lm_eval_edit.comparison import baseline
from lm_eval_edit.comparison.logged_samples import read_samples
from lm_eval_edit.comparison.runs import Run, TaskSamples
from lm_eval_edit.errors import UserError

__all__ = ["Run", "TaskSamples", "find_results", "load_run", "read_samples"]

DATE = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?"
_DATED = re.compile(rf"(?P<stem>.+)_(?P<date>{DATE})\.json")


# --------------------------------------------------------------------------------------------------- finding the files


def find_results(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The results file that `path` means: itself, or the newest below a folder.

    Raises:
        UserError: nothing there, or a folder that holds the results of several models.
    """
    if path.is_file():
        return path, ()
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; give a results_*.json of lm_eval or a folder with one")
    dated = [(found["date"], file) for file in path.rglob("*.json") if (found := _DATED.fullmatch(file.name))]
    dated = [(date, file) for date, file in dated if not file.name.startswith("samples_")]
    if not dated:
        raise UserError(f"{path} holds no results_*.json; run lm_eval with --output_path {path} --log_samples")
    folders = sorted({str(file.parent.relative_to(path)) for _, file in dated})
    if len(folders) > 1:
        raise UserError(f"{path} holds results of {len(folders)} models ({', '.join(folders[:4])}); name one of them")
    newest = max(dated)[1]
    if len(dated) == 1:
        return newest, ()
    return newest, (f"{path} holds {len(dated)} results files; the newest is taken: {newest.name}",)


def _samples_files(results_file: Path, tasks: Iterable[str]) -> dict[str, Path]:
    """The samples file of each task that has one."""
    dated = _DATED.fullmatch(results_file.name)
    found: dict[str, Path] = {}
    for task in tasks:
        if dated:
            file = results_file.parent / f"samples_{task}_{dated['date']}.jsonl"
            files = [file] if file.is_file() else []
        else:  # renamed by its owner, so the date is of no help
            pattern = re.compile(rf"samples_{re.escape(task)}_{DATE}\.jsonl")
            files = [file for file in results_file.parent.iterdir() if pattern.fullmatch(file.name)]
        if len(files) > 1:
            raise UserError(
                f"{results_file} has no date in its name and {len(files)} samples files of {task} beside it; keep the "
                f"name that lm_eval gave it, or leave one"
            )
        if files:
            found[task] = files[0]
    return found


# ------------------------------------------------------------------------------------------------------------- reading


def load_run(path: str | Path, *, cluster: str | None = None) -> Run:
    """Read a run's results and samples, or a frozen baseline.

    Args:
        path: A results file, a folder that holds one or several, or a frozen baseline.
        cluster: The field that documents of a cluster share, instead of the known ones; "none" for no clusters.

    Raises:
        UserError: no results, no samples, or samples that are broken or incomplete.
    """
    file, notices = find_results(Path(path))
    results = read_json(file)
    if baseline.is_frozen(results):
        return baseline.thaw(results, file)
    if not isinstance(results, dict) or not isinstance(results.get("results"), dict):
        raise UserError(f"{file} is no results file of lm_eval: it has no 'results'")
    results.pop("samples", None)
    tasks = [name for name in results["results"] if name in (results.get("configs") or {})]
    files = _samples_files(file, tasks)
    if not files:
        raise UserError(f"{file} has no samples_*.jsonl beside it; run lm_eval with --log_samples")
    if missing := [task for task in tasks if task not in files]:
        raise UserError(f"{file}: the samples of {', '.join(missing)} are missing; were files moved or deleted?")
    samples = {}
    for task, samples_file in files.items():
        for found in read_samples(samples_file, task, results, cluster):
            samples[task, found.filter] = found
    return Run(file, results, samples, notices)
