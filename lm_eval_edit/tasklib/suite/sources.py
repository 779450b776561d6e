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
from lm_eval_edit.tasklib.shorten import Prompt
from lm_eval_edit.tasklib.suite import documents, prompts
from lm_eval_edit.tasklib.suite.catalogue import BY_LIKELIHOOD, GROUP, TASKS, record_set

__all__ = ["check_data_dir", "check_offline", "check_tasks", "dataset", "load", "resolve", "wanted"]

logger = logging.getLogger("lm_eval_edit")

LEFT_OUT = ("conll2003",)  # of the tasks that are asked by likelihood


def resolve(task: str, metadata: dict[str, Any]) -> Source:
    """Decide where the records of a task of `catalogue.TASKS` are; see `records.sources.resolve`."""
    return of_records.resolve(record_set(task), metadata)


def wanted(names: Iterable[str]) -> list[str]:
    """The tasks of the suite whose data the tasks and groups of these names need, as the harness resolved them."""
    names = set(names)
    if GROUP in names:
        return list(TASKS)
    lacking = LEFT_OUT if BY_LIKELIHOOD in names else TASKS
    return [task for task in TASKS if task not in lacking or {f"edithurt_{task}", f"edithurt_{task}_mc"} & names]


def check_tasks(names: Iterable[str], metadata: dict[str, Any]) -> None:
    """Check that the data of every task of the suite among `names` can be found; see `records.sources.check`."""
    of_records.check(map(record_set, wanted(names)), metadata)


def check_offline(names: Iterable[str], metadata: dict[str, Any]) -> None:
    """The same for what an earlier run must have kept of the hub; see `records.sources.check_offline`."""
    of_records.check_offline(map(record_set, wanted(names)), metadata)


def load(
    task: str, metadata: dict[str, Any], prompt: Prompt | None = None, new_tokens: int | None = None
) -> tuple[list[documents.Document], dict[str, Any]]:
    """The task's documents, ready to be prompted, and their provenance.

    Args:
        task, metadata: As for `resolve`.
        prompt, new_tokens: What must fit into the model, where that is not the suite's prompt and new tokens.

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
    room = spec.new_tokens if new_tokens is None else new_tokens
    budget = shorten.fit(docs, prompt or getattr(prompts, task), spec.shortenable, room, metadata)
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
