"""What a run's tasks need, looked for before any model loads; every problem at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lm_eval_edit.errors import ConfigurationError, UserError, problems_of
from lm_eval_edit.tasklib.editing import documents as editing_documents
from lm_eval_edit.tasklib.records import sources
from lm_eval_edit.tasklib.records.sets import RecordSet
from lm_eval_edit.tasklib.suite import sources as suite_sources
from lm_eval_edit.tasklib.suite.catalogue import record_set


def records_of(names: Iterable[str]) -> list[RecordSet]:
    """The records that the tasks of ours among task and group names are made of."""
    return [record_set(task) for task in suite_sources.wanted(list(names))]


def check_records(names: Iterable[str], metadata: dict[str, Any]) -> None:
    """Check that the records of the tasks among `names` can be found, whatever family they are of.

    Args:
        names: Task and group names as the harness resolved them.
        metadata: All model arguments and `--metadata`.

    Raises:
        ConfigurationError: naming every task without data and what was looked for.
    """
    sources.check(records_of(names), metadata)


def check_tasks(names: Iterable[str], metadata: dict[str, Any]) -> None:
    """Check records, in a folder or kept from the hub, and the facts to ask about.

    Args:
        names, metadata: As for `check_records`.

    Raises:
        UserError: every problem.
    """
    names = list(names)

    def in_reach() -> None:
        if metadata.get("data_dir"):
            check_records(names, metadata)
        sources.check_offline(records_of(names), metadata)

    looks = in_reach, lambda: editing_documents.check_tasks(names, metadata)
    errors = [error for look in looks if (error := _error(look)) is not None]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ConfigurationError(problem for error in errors for problem in problems_of(error))


def _error(look: Callable[[], None]) -> UserError | None:
    try:
        look()
    except UserError as error:
        return error
    return None
