"""What a run's tasks need, looked for before any model loads; every problem at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lm_eval_edit.errors import ConfigurationError, UserError, problems_of
from lm_eval_edit.tasklib import perplexity
from lm_eval_edit.tasklib.editing import documents as editing_documents
from lm_eval_edit.tasklib.glue import catalogue as glue_catalogue
from lm_eval_edit.tasklib.glue import sources as glue_sources
from lm_eval_edit.tasklib.records import sources
from lm_eval_edit.tasklib.records.sets import RecordSet
from lm_eval_edit.tasklib.suite import catalogue as suite_catalogue
from lm_eval_edit.tasklib.suite import checks as suite_checks
from lm_eval_edit.tasklib.suite import sources as suite_sources


def records_of(names: Iterable[str]) -> list[RecordSet]:
    """The records that the tasks of ours among task and group names are made of."""
    names = list(names)
    of_glue = [glue_catalogue.TASKS[task].records for task in glue_sources.wanted(names)]
    return [*map(suite_catalogue.record_set, suite_sources.wanted(names)), *of_glue]


def check_records(names: Iterable[str], metadata: dict[str, Any]) -> None:
    """Check that the records of the tasks among `names` can be found, whatever family they are of, and can be read.

    Args:
        names: Task and group names as the harness resolved them.
        metadata: All model arguments and `--metadata`.

    Raises:
        ConfigurationError: naming every task without data and what was looked for.
    """
    names = list(names)
    _all(
        lambda: sources.check(records_of(names), metadata),
        lambda: suite_checks.check_records(names, metadata),
        lambda: glue_sources.check_tasks(names, metadata),
        lambda: perplexity.check_tasks(names, metadata),
    )


def check_tasks(names: Iterable[str], metadata: dict[str, Any]) -> None:
    """Check records, in a folder or kept from the hub, and the facts to ask about.

    Args:
        names, metadata: As for `check_records`.

    Raises:
        UserError: every problem.
    """
    names = list(names)

    def in_folder() -> None:
        if metadata.get("data_dir"):
            sources.check(records_of(names), metadata)
        sources.check_offline(records_of(names), metadata)

    def of_perplexity() -> None:
        if metadata.get("data_dir"):
            perplexity.check_tasks(names, metadata)
        perplexity.check_offline(names, metadata)

    _all(
        in_folder,
        of_perplexity,
        lambda: suite_checks.check_records(names, metadata),
        lambda: glue_sources.check_tasks(names, metadata),
        lambda: editing_documents.check_tasks(names, metadata),
    )


def _all(*looks: Callable[[], None]) -> None:
    """Every look, whatever the others found."""
    errors = [error for look in looks if (error := _error(look)) is not None]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ConfigurationError(dict.fromkeys(problem for error in errors for problem in problems_of(error)))


def _error(look: Callable[[], None]) -> UserError | None:
    try:
        look()
    except UserError as error:
        return error
    return None
