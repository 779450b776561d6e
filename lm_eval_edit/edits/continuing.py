"""Edits that arrive over time: what a run on a model that is edited already starts from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lm_eval_edit._support.files import hash_json
from lm_eval_edit.editors.base import Editor
from lm_eval_edit.edits.ledger import Ledger, read_header
from lm_eval_edit.edits.operations import Operation, read_operations
from lm_eval_edit.edits.schedule import EditSchedule
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.weights.carried import carried_by

logger = logging.getLogger("lm_eval_edit")


@contextmanager
def taken_over(model: PreTrainedModel, directory: Path | None) -> Iterator[None]:
    """A context in which a run with a ledger's folder begins on a model that may carry edits.

    Edits of that very ledger are taken off, bit for bit; the run replays them and goes on with its editor's state. If
    it cannot begin they are put back. With any other edits the model is edited as it stands: the run knows nothing of
    them, and says so.
    """
    ledger = _taken_off(model, directory)
    applied = ledger.applied if ledger is not None else 0
    if ledger is not None:
        ledger.restore()
    try:
        yield
    except BaseException:
        if ledger is not None:
            ledger.apply(applied)
        raise


def _taken_off(model: PreTrainedModel, directory: Path | None) -> Ledger | None:
    """The ledger whose edits the run replays itself; None with a warning where the model carries any others."""
    carried = carried_by(model)
    owners = [getattr(weights, "owner", None) for weights in carried]
    if not carried:
        return None
    ledger = owners[0]
    if len(carried) == 1 and isinstance(ledger, Ledger) and _same(ledger.directory, directory):
        return ledger
    known = [owner for owner in owners if isinstance(owner, Ledger)]
    edits = sum(len(operation.facts) for owner in known for operation in owner.applied_operations)
    by = ", ".join(dict.fromkeys(owner.identity["editor"] for owner in known))
    logger.warning(
        "the model carries edits already (%s): this run starts anew on the weights as they stand, and its method knows "
        "nothing of the earlier edits, their keys included. To go on with them call edit(facts) of their ledger, or "
        "give edit_model their ledger's folder with the new facts behind the old ones; restore() takes them off",
        f"{edits} by {by}" if known else "those of the model it is a copy of",
    )
    return None


def _same(one: Path | None, other: Path | None) -> bool:
    return one is not None and other is not None and one.resolve() == other.resolve()


def operations_after(directory: Path | None, facts: Sequence[Fact], edit_batch_size: int) -> list[list[Fact]]:
    """The operations of a schedule that goes on behind a ledger's: the facts there in the batches that they were in.

    A run of 3 facts in batches of 2 ends with an operation of one; what comes behind it begins a new batch.

    Args:
        directory: The ledger's folder; None for none.
        facts: Old and new, first to last.
        edit_batch_size: Facts of a batch.

    Raises:
        UserError: the ledger is damaged.
    """
    stored: Iterator[Operation] = iter(())
    if directory is not None and (header := read_header(directory)) is not None:
        stored = read_operations(directory, header)
    operations: list[list[Fact]] = []
    start = 0
    while start < len(facts) and (done := next(stored, None)) is not None:
        batch = list(facts[start : start + len(done.facts)])
        if hash_json([fact.identity() for fact in batch]) != hash_json([fact.identity() for fact in done.facts]):
            break  # not the same facts, or the end of them: `check_schedule` tells
        operations.append(batch)
        start += len(batch)
    return operations + batched(facts[start:], edit_batch_size)


def batched(facts: Sequence[Fact], size: int) -> list[list[Fact]]:
    """The facts in their order, in batches of `size`, the last one with what is left."""
    return EditSchedule(len(facts), size, seed=None).operations(facts)


def batch_problems(
    editor_class: type[Editor], edit_batch_size: int, given: Mapping[str, Any] | None = None
) -> list[str]:
    """The problem of a batch size that a method does not support, as a list of sentences.

    Args:
        given: The method's hyper-parameters as given, which may choose the editor it wraps.
    """
    try:
        inner = editor_class.wraps(given or {})
        supported = edit_batch_size == 1 or editor_class.edits_batches(given or {})
    except UserError:  # no such editor to wrap: `resolve` tells
        return []
    if supported:
        return []
    name = f"{editor_class.name} of {inner.name}" if inner is not None else editor_class.name
    return [
        f"edit_batch_size={edit_batch_size}: {name} edits one fact at a time; use edit_batch_size=1 "
        f"(n_edits facts are then edited one after another), or a method that edits batches"
    ]
