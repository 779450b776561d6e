"""The documents of the eight tasks, from wherever their records are, and the harness's `custom_dataset`.

Which source it was stands in every document (`source`) and in the results (`configs.<task>.metadata.provenance`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from lm_eval_edit.tasklib import shorten
from lm_eval_edit.tasklib.records import sources as of_records
from lm_eval_edit.tasklib.records.sources import Source, check_data_dir
from lm_eval_edit.tasklib.suite import documents, prompts
from lm_eval_edit.tasklib.suite.catalogue import GROUP, TASKS, record_set

__all__ = ["check_data_dir", "check_offline", "check_tasks", "dataset", "load", "resolve", "wanted"]

logger = logging.getLogger("lm_eval_edit")


def resolve(task: str, metadata: dict[str, Any]) -> Source:
    """Decide where the records of a task of `catalogue.TASKS` are; see `records.sources.resolve`."""
    return of_records.resolve(record_set(task), metadata)


def wanted(names: Iterable[str]) -> list[str]:
    """The tasks of the suite among task and group names as the harness resolved them; a group stands for its tasks."""
    names = list(names)
    return list(TASKS) if GROUP in names else [task for task in TASKS if f"edithurt_{task}" in names]


def check_tasks(names: Iterable[str], metadata: dict[str, Any]) -> None:
    """Check that the data of every task of the suite among `names` can be found; see `records.sources.check`."""
    of_records.check(map(record_set, wanted(names)), metadata)


def check_offline(names: Iterable[str], metadata: dict[str, Any]) -> None:
    """The same for what an earlier run must have kept of the hub; see `records.sources.check_offline`."""
    of_records.check_offline(map(record_set, wanted(names)), metadata)


def load(task: str, metadata: dict[str, Any]) -> tuple[list[documents.Document], dict[str, Any]]:
    """The task's documents, ready to be prompted, and their provenance.

    Returns:
        Documents with `source`, `shortened` and `overlong` added, and a dictionary of what is known about them: where
        they come from, how many there are, how many were shortened.

    Raises:
        UserError: No data, broken data, or no network.
    """
    records, provenance = of_records.read(record_set(task), metadata)
    docs, notes = documents.build(task, records)
    for doc in docs:
        doc.update(source=provenance["source"], shortened=False, overlong=False)
    spec = TASKS[task]
    budget = shorten.fit(docs, getattr(prompts, task), spec.shortenable, spec.new_tokens, metadata)
    if notes.get("with_passage") is False:
        logger.warning("nq: %s has no passages, the questions are asked closed-book", provenance["source"])
    return docs, {
        **provenance,
        "paper_split": spec.split,
        **notes,
        "documents": len(docs),
        "prompt_budget": budget,
        "shortened": sum(doc["shortened"] for doc in docs),
        "overlong": sum(doc["overlong"] for doc in docs),
    }


def dataset(edithurt: str, provenance: Any = None, **metadata: Any) -> dict[str, Any]:
    """`custom_dataset` of the task YAMLs: `{"test": datasets.Dataset}`.

    Args:
        edithurt: The task, from `dataset_kwargs`.
        provenance: The empty dictionary in the task's own `metadata`. The harness hands over that very object and dumps
            it with the task's configuration after the run, so what is written into it is in the results.
        metadata: All model arguments, `--metadata`, and what else stands in the task's `metadata`.
    """
    import datasets

    docs, known = load(edithurt, metadata)
    if isinstance(provenance, dict):
        provenance.update(known)
    return {"test": datasets.Dataset.from_list(docs)}
