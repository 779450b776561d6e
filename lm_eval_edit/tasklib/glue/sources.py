"""The documents of the eight tasks, from wherever their records are, and the harness's `custom_dataset`.

Which records are items, and in which order, is the published rule (`order`); a file that is the published list itself
is taken as it lies. Whether what is asked is what papers ask, by its checksums (`published`), stands in the results
(`configs.<task>.metadata.provenance.order`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval_edit import demo
from lm_eval_edit.errors import ConfigurationError, UserError, problems_of
from lm_eval_edit.settings import ALL, parse_items
from lm_eval_edit.tasklib import shorten
from lm_eval_edit.tasklib.glue import documents, order, prompts, published
from lm_eval_edit.tasklib.glue.catalogue import (
    GROUP,
    GROUPED,
    NEW_TOKENS,
    PREFIX,
    PUBLISHED,
    RESERVED,
    TASKS,
)
from lm_eval_edit.tasklib.glue.documents import Document
from lm_eval_edit.tasklib.records import layouts, sources
from lm_eval_edit.tasklib.records.layouts import Placed, Record

logger = logging.getLogger("lm_eval_edit")


def wanted(names: Iterable[str]) -> list[str]:
    """The tasks of ours among task and group names as the harness resolved them; the group stands for its six."""
    names = set(names)
    return [task for task in TASKS if f"{PREFIX}{task}" in names or (GROUP in names and task in GROUPED)]


def items_of(metadata: dict[str, Any]) -> int | str | None:
    """How many items a run asks for: a number, `all`, or None for the published ones.

    Raises:
        UserError: anything else.
    """
    try:
        return parse_items(metadata.get("items"))
    except ValueError as error:
        shown = metadata["items"]
        shown = int(shown) if isinstance(shown, float) and shown.is_integer() else shown  # as the harness parses -1
        raise UserError(f"items={shown}: {error}") from None


def check_tasks(names: Iterable[str], metadata: dict[str, Any]) -> None:
    """Check `items`, and all records of the tasks among `names` that are in files, before anything is loaded.

    Args:
        names: Task and group names as the harness resolved them.
        metadata: All model arguments and `--metadata`. That files are there is for `records.sources.check`.

    Raises:
        ConfigurationError: naming every problem.
    """
    tasks, problems, items = wanted(names), [], None
    if not tasks:
        return
    try:
        items = items_of(metadata)
    except UserError as error:
        problems.append(str(error))
    for task in tasks:
        records = TASKS[task].records
        try:
            found = sources.resolve(records, metadata).found
        except UserError:
            continue  # told already
        if found is not None:
            try:
                _chosen(task, layouts.read(found), items)
            except UserError as error:
                problems += problems_of(error)
    if problems:
        raise ConfigurationError(dict.fromkeys(problems))


def load(task: str, metadata: dict[str, Any]) -> tuple[list[Document], dict[str, Any]]:
    """The task's documents, ready to be prompted, and their provenance.

    Returns:
        Documents with `item`, `source`, `shortened` and `overlong` added, and what is known about them: where they come
        from, how many there are, which of the list they are, and whether they are the published items.

    Raises:
        UserError: No data, broken data, no network, or no item left.
    """
    spec, items = TASKS[task], items_of(metadata)
    placed, provenance = sources.read(spec.records, metadata)
    docs, listed = _chosen(task, placed, items)
    known = _whose(task, docs, len(placed), provenance["source"])
    if lacking := sorted({*range(len(spec.words))} - {doc["gold"] for doc in docs}):
        words = ", ".join(spec.words[label] for label in lacking)
        logger.warning(
            "edithurt_glue_%s: no item is answered with %s: its figures say nothing of an ability", task, words
        )
    if isinstance(items, int) and len(docs) < items:
        logger.warning("edithurt_glue_%s: there are %d items, not %d", task, len(docs), items)
    for doc in docs:
        doc.update(source=provenance["source"], shortened=False, overlong=False)
    budget = shorten.fit(docs, getattr(prompts, task), spec.shortenable, NEW_TOKENS, metadata)
    return docs, {
        **provenance,
        "split": spec.records.split,
        "records": len(placed),
        "listed": len(listed),
        "items": "published" if items is None else items,
        "order": known,
        "documents": len(docs),
        "prompt_budget": budget,
        "shortened": sum(doc["shortened"] for doc in docs),
        "overlong": sum(doc["overlong"] for doc in docs),
    }


def _chosen(task: str, placed: Sequence[Placed], items: int | str | None) -> tuple[list[Document], list[int]]:
    """The documents that are asked, and the whole list: the record of each item."""
    docs = documents.build(task, placed)
    listed = _listed(task, placed, docs)
    count = PUBLISHED if items is None else items
    first, last = (0, len(listed)) if count == ALL else (RESERVED, RESERVED + int(count))
    chosen = [{**docs[record], "item": first + place} for place, record in enumerate(listed[first:last])]
    if not chosen:
        raise UserError(
            f"edithurt_glue_{task}: the {len(placed)} records ({placed[0][0]} and on) make a list of {len(listed)} "
            f"items, and the first {RESERVED} are kept for examples; give more records, or items={ALL}"
        )
    return chosen, listed


def _listed(task: str, placed: Sequence[Placed], docs: Sequence[Document]) -> list[int]:
    """Which record each item of the list is."""
    if published.is_list(task, docs):
        return list(range(len(docs)))
    spec = TASKS[task]
    records = list(range(len(docs)))
    if spec.listed is not None:  # a folder of one file a record
        named = [_name(record, f"{spec.listed}{number}") for number, (_, record) in enumerate(placed, 1)]
        records = order.as_listed([f"{name}.txt" for name in named])
    places = order.published([docs[record]["gold"] for record in records], spec.order)
    return [records[place] for place in places]


def _name(record: Record, otherwise: str) -> str:
    """What the record's file is called."""
    known = record.get("id")
    return known if isinstance(known, str) else otherwise


def _whose(task: str, docs: Sequence[Document], records: int, source: str) -> str:
    """Whether the documents are the published items, in words; told where they are not."""
    if source == demo.NAME:
        return source
    differ = len(docs) - published.agreeing(task, docs, docs[0]["item"])
    if differ == 0:
        return "as published"
    if 2 * differ < len(docs):
        logger.info("edithurt_glue_%s: %d of %d items are another text than published", task, differ, len(docs))
        return f"as published, but {differ} of {len(docs)} items are another text"
    if records not in (*TASKS[task].sizes, published.length(task)):
        logger.warning(
            "edithurt_glue_%s: %d records where the published list is made of %s: the items are not the published ones",
            task, records, " or ".join(map(str, TASKS[task].sizes)),
        )  # fmt: skip
        return "other records"
    logger.warning(
        "edithurt_glue_%s: %d of %d items are not the published ones: other records, or in another order",
        task, differ, len(docs),
    )  # fmt: skip
    return "not as published"


def dataset(edithurt: str, provenance: Any = None, **metadata: Any) -> dict[str, Any]:
    """`custom_dataset` of the task YAMLs: `{"test": datasets.Dataset}`.

    Args:
        edithurt: The task, from `dataset_kwargs`.
        provenance: The empty dictionary in the task's own `metadata`, which the harness dumps into the results.
        metadata: All model arguments, `--metadata`, and what else stands in the task's `metadata`.
    """
    import datasets

    docs, known = load(edithurt, metadata)
    if isinstance(provenance, dict):
        provenance.update(known)
    return {"test": datasets.Dataset.from_list(docs)}
