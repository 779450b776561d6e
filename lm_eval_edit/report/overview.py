"""What a sweep is and how far it got: the head of a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_edit.comparison.floors import AT_FLOOR, format_advice, lost_formats
from lm_eval_edit.comparison.other_engines import engines_differ
from lm_eval_edit.report.comparing import Compared, below
from lm_eval_edit.sweep.reading import COLLAPSED, DONE, FAILED, LEFT_OUT, Sweep

MISSING = "missing"
STATES = (DONE, COLLAPSED, FAILED, MISSING, LEFT_OUT)


@dataclass(frozen=True)
class State:
    """One cell's state.

    Attributes:
        path: Its folder below the sweep's.
        status: One of `STATES`.
        why: What its record says, where it is not done.
    """

    path: str
    status: str
    why: str | None


def states(sweep: Sweep) -> list[State]:
    """The state of every cell, those of the unedited models and of checkpoints that were left out included."""
    return [
        State(below(sweep, cell.folder), cell.status or MISSING, cell.reason)
        for _, cell in sweep.cells(left_out=True)
    ]  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Where the data of a task came from, as the task recorded it.

    Attributes:
        documents: How many were evaluated, ascending: tasks about the edits have more in every further cell.
    """

    task: str
    source: str
    sha256: str
    documents: tuple[int, ...]


def sources(sweep: Sweep) -> list[Source]:
    """The data of every task that says where it is from; one entry for each different source."""
    found: dict[tuple[str, str, str], set[int]] = {}
    for _, cell in sweep.cells():
        for task, config in (cell.results.get("configs") or {}).items():
            said = (config.get("metadata") or {}).get("provenance")
            if isinstance(said, Mapping) and "source" in said:
                counts = found.setdefault((task, str(said["source"]), str(said.get("sha256", ""))), set())
                n = ((cell.results.get("n-samples") or {}).get(task) or {}).get("effective")
                if n is not None:
                    counts.add(n)
    return [Source(*what, tuple(sorted(counts))) for what, counts in found.items()]


def warnings(sweep: Sweep, compared: Sequence[Compared]) -> list[str]:
    """What must be known before any figure is quoted."""
    found = []
    said = sources(sweep)
    if from_demo := list(dict.fromkeys(source.task for source in said if source.source == "demo")):
        every = {source.task for source in said} == set(from_demo)
        found.append(f"demo data: not a benchmark result ({'all tasks' if every else ', '.join(from_demo)})")
    if (limit := (sweep.header.get("design") or {}).get("limit")) is not None:
        found.append(f"only the first {limit} documents of each task were evaluated (limit: {limit})")
    if missing := [state for state in states(sweep) if state.status in (FAILED, MISSING)]:
        cells = "1 cell is" if len(missing) == 1 else f"{len(missing)} cells are"
        found.append(f"{cells} not done; what is said below is of the others")
    if sweep.header["about_model"]:
        found += _baselines(compared)
    return [*found, *_engines(compared), *_floors(compared), *_without_headline(compared), *_guards(compared)]


def _floors(compared: Sequence[Compared]) -> Iterable[str]:
    """The tasks that the unedited models cannot do, and why that may be."""
    first: dict[str, Compared] = {}
    for each in compared:
        if each.comparison is not None:
            first.setdefault(each.row.model, each)
    for model, each in first.items():
        if low := {task: row.floor for task, row in each.headlines.items() if row.floor is not None}:
            tasks = "; ".join(f"{task}: {why}" for task, why in low.items())
            yield f"the unedited {model} is {AT_FLOOR} ({tasks}); these tasks are left out of the damage budget"
        base = each.comparison.base if each.comparison is not None else None
        if base is not None and (advice := format_advice(base.results, lost_formats(base))):
            yield f"{model}: {advice}"


def _engines(compared: Sequence[Compared]) -> Iterable[str]:
    """The cells that another engine has evaluated than the unedited model they are held against."""
    found: dict[tuple[str, str], int] = {}
    for each in compared:
        if each.comparison is not None:
            how = engines_differ(each.comparison.base, each.comparison.edited, dict.fromkeys(each.headlines))
            if how is not None:
                found[each.row.model, how] = found.get((each.row.model, how), 0) + 1
    for (model, how), count in found.items():
        cells = "1 cell is" if count == 1 else f"{count} cells are"
        yield (
            f"{cells} held against the unedited {model} across different engines, {how}: a part of the differences is "
            f"the engines' own arithmetic. A sweep into a folder of its own has one engine throughout"
        )


def _without_headline(compared: Sequence[Compared]) -> Iterable[str]:
    """The tasks whose headline metric is not compared: each once, no other metric in its place."""
    found = {
        f"{task}: its headline metric {why}; no other takes its place"
        for each in compared
        if each.comparison is not None
        for task, why in each.comparison.without_headline.items()
    }
    return sorted(found)


def _baselines(compared: Sequence[Compared]) -> Iterable[str]:
    """The unedited models that are not there to compare with, or only in part."""
    first = {each.row.baseline.folder: each for each in compared}
    for each in first.values():
        cell = each.row.baseline
        if cell.status == DONE:
            continue
        state = cell.status or ("damaged" if cell.reason else "not there yet")
        why = f" ({cell.reason})" if cell.reason else ""
        lost = "what it was not evaluated on cannot be compared" if each.tasks else "nothing can be compared"
        yield f"the unedited model of {each.row.model} is {state}{why}: {lost}; run the sweep again"


def _guards(compared: Sequence[Compared]) -> Iterable[str]:
    """The guards that a run recorded as not passed."""
    for each in compared:
        guards: Mapping[str, Any] = each.cell.edit.get("guards") or {}
        if guards.get("answers_changed_ok") is False:
            yield f"{each.row.name}, {each.cell.n_edits} edits: the answers to the edited prompts hardly changed"
        elif guards.get("edits_took_ok") is False:
            own, end, edits = (guards.get(name) for name in ("right_after_own_edit", "right_at_end", "edits"))
            yield f"{each.row.name}: of {edits} edits {own} were answered right after their own edit, {end} at the end"
