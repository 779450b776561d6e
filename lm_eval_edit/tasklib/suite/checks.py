"""What is wrong with the records of a run's tasks, told before a model loads; those on the hub are read when needed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lm_eval_edit.errors import ConfigurationError, UserError, problems_of
from lm_eval_edit.tasklib.records import layouts
from lm_eval_edit.tasklib.suite import documents, likelihood, sources
from lm_eval_edit.tasklib.suite.catalogue import BY_LIKELIHOOD


def check_records(names: Iterable[str], metadata: dict[str, Any]) -> None:
    """Read all records of the tasks among `names` that are in files.

    Args:
        names: Task and group names as the harness resolved them.
        metadata: All model arguments and `--metadata`. That files are there is for `records.sources.check`.

    Raises:
        ConfigurationError: naming every broken record.
    """
    names, problems = set(names), []
    for task in sources.wanted(names):
        try:
            found = sources.resolve(task, metadata).found
        except UserError:
            continue  # told already
        if found is None:
            continue
        try:
            placed = layouts.read(found)
            docs, _ = documents.build(task, placed)
            if _by_likelihood(task, names):
                likelihood.check_answers(task, [f"{task}_mc: {place}" for place, _ in placed], docs)
        except UserError as error:
            problems += problems_of(error)
    if problems:
        raise ConfigurationError(dict.fromkeys(problems))


def _by_likelihood(task: str, names: set[str]) -> bool:
    in_group = BY_LIKELIHOOD in names and task not in sources.LEFT_OUT
    return in_group or f"edithurt_{task}_mc" in names
