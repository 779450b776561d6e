"""The edit ledger: every operation of a schedule as a file, so that an edited model can be made again, bit for bit.

    ledger.json            what the operations belong to: model, editor, hyper-parameters, templates, second moments
    ops/00000.safetensors  the operation's deltas, and the state its editor keeps
    ops/00000.json         its facts, figures and hashes; written last, so an operation is there whole or not at all

Every operation says of which run it is (a hash of the identity in `ledger.json`), and while a run may add operations it
keeps other writers out of the folder; readers need no lock.

A run that was stopped replays what is there and goes on. Replaying *applies* the deltas, in order, to the unedited
model: the state after n operations is a prefix of the state after more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from torch import Tensor

from lm_eval_edit._support.differences import differences
from lm_eval_edit._support.files import hash_json, read_json, write_json, writing
from lm_eval_edit._support.locks import only_writer
from lm_eval_edit.edits.operations import Operation, operation_file, read_operations
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.weights.delta import Delta, save_deltas
from lm_eval_edit.weights.edited import EditedWeights

logger = logging.getLogger("lm_eval_edit")

FORMAT = 1
#: What `extra` may hold and others read; None where it is not known.
_EXTRA = {
    "model": (dict, NoneType), "editor_class": (str, NoneType), "context_templates": (list, NoneType),
    "second_moments_source": (str, NoneType), "versions": (dict, NoneType), "chat": (dict, NoneType),
}  # fmt: skip
#: What of the model's origin it is loaded again by; the rest (`source.describe_source`) is told and never used.
_LOADED_BY = ("pretrained", "revision", "dtype", "gguf_file")


@dataclass
class Ledger:
    """The operations done on one model.

    Attributes:
        identity: What the operations depend on; a folder with another identity is refused.
        extra: What is worth keeping and does not decide whether the ledger fits (context templates, versions, source).
        operations: First to last.
        directory: Where they are stored; None keeps them in memory.
        weights: The model they are applied to.
        guards: Verdicts on the edited weights.
        finish: The editor's last correction (`Editor.finish`), applied after the operations whatever their number.
        applied: How many of the operations, counted from the first, the model carries now.
        correction: What the model carries of `finish` beside them; no further operation may start from there.
        edit_more: Goes on with the run that made it; None for a ledger without one.
    """

    identity: dict[str, Any]
    extra: dict[str, Any]
    weights: EditedWeights
    operations: list[Operation] = field(default_factory=list)
    directory: Path | None = None
    guards: dict[str, Any] = field(default_factory=dict)
    finish: Callable[[Mapping[str, tuple[Tensor, Tensor]]], dict[str, Delta]] = field(default=lambda weights: {})
    applied: int = 0
    correction: dict[str, Delta] = field(default_factory=dict)
    edit_more: Callable[[Sequence[Fact]], None] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.weights.owner = self

    def edit(self, facts: Sequence[Fact]) -> None:
        """Edit more facts, behind those that are there: the same editor, with the state that its operations have left.

        The new facts begin an operation of their own, in batches as large as the run's.

        Args:
            facts: What to edit, first to last.

        Raises:
            ConfigurationError: with every problem of the facts; nothing was changed.
            EditError: an edit failed its guards; the model is restored, the ledger holds the operations before it.
        """
        if self.edit_more is None:
            raise UserError("this ledger belongs to no run that could go on; give its folder to edit_model")
        self.edit_more(facts)

    def restore(self) -> None:
        """Put the model back to its unedited weights, bit for bit. The operations stay in the ledger."""
        self.weights.restore()
        self.applied, self.correction = 0, {}

    def apply(self, n_operations: int | None = None) -> None:
        """Bring the model to the state after the first n operations (default: all)."""
        self.replay(n_operations)
        self.close()

    def replay(self, n_operations: int | None = None) -> None:
        """`apply` without the editor's last correction: the state from which the next operation starts.

        Goes on from the operations the model carries where it can, which gives the same bits as starting anew.
        """
        operations = self.operations[:n_operations]
        for operation in operations[self.rewind(len(operations)) :]:
            self.weights.apply(operation.deltas)
            operation.release()
            self.applied += 1

    def compare_with_record(self) -> None:
        """Warn where the weights after replayed operations are not those recorded when they were computed."""
        if self.applied and self.fingerprint() != self.applied_operations[-1].record["fingerprint"]:
            logger.warning(
                "the replayed weights differ from those recorded in %s in their last bits: "
                "another processor or library rounds differently",
                self.directory,
            )

    def rewind(self, n_operations: int) -> int:
        """Restore the model if it carries what does not belong to the state after n operations.

        Returns:
            How many operations the model carries then.
        """
        if self.correction or self.applied > n_operations:
            self.restore()
        return self.applied

    def close(self) -> None:
        """Apply the editor's last correction for the operations the model carries now."""
        if not self.correction:
            self.correct(self.finish(self.weights.changes()))

    def correct(self, correction: dict[str, Delta]) -> None:
        """Apply a last correction."""
        self.weights.apply(correction)
        self.correction = correction

    @property
    def n_edits(self) -> int:
        """How many facts the operations edited."""
        return sum(len(operation.facts) for operation in self.operations)

    @property
    def applied_operations(self) -> list[Operation]:
        """The operations the model carries now."""
        return self.operations[: self.applied]

    def fingerprint(self) -> str:
        """A hash of the model's weights as they stand."""
        return self.weights.fingerprint(self.identity["model"]["fingerprint"])

    @contextmanager
    def growing(self, schedule: Sequence[Sequence[Fact]]) -> Iterator[None]:
        """A context in which operations may be appended: nobody else writes the folder, whose operations are all here.

        Args:
            schedule: The facts of the operations planned; what another run of this very schedule has added since this
                ledger was opened is taken up.

        Raises:
            UserError: another run is writing the folder, or has made it its own.
            CannotWriteError: the folder cannot be written.
        """
        if self.directory is None:
            yield
            return
        with only_writer(self.directory, "run with this edit_ledger"):
            header = read_header(self.directory)
            if header is None:
                raise UserError(f"edit_ledger={self.directory}: its ledger.json has been deleted since this run began")
            if found := differences(header["identity"], self.identity):
                raise mismatch(self.directory, found)
            there = read_operations(self.directory, header)[: len(schedule)]
            if len(there) != len(self.operations):
                self.operations = [*self.operations[: len(there)], *there[len(self.operations) :]]
                check_schedule(self.directory, self.operations, schedule)
            yield

    def append(
        self,
        facts: Sequence[Fact],
        deltas: Mapping[str, Delta],
        state: Mapping[str, Tensor],
        record: Mapping[str, Any],
    ) -> Operation:
        """Add an operation, stored on disk before this returns when the ledger has a folder.

        Its tensors are kept on the CPU: a GPU has room for the weights, not for a schedule's deltas as well.

        Raises:
            CannotWriteError: the disk is full, or the folder cannot be written; operations stored before are whole.
        """
        index = len(self.operations)
        facts_as_stored = [fact.identity() for fact in facts]
        full = {"index": index, "run": hash_json(self.identity), "facts": facts_as_stored, **record}
        deltas = {name: delta.to("cpu") for name, delta in deltas.items()}
        state = {name: tensor.to("cpu") for name, tensor in state.items()}
        operation = Operation(index, list(facts), full, deltas, state)
        if self.directory is not None:
            operation._file = operation_file(self.directory, index, "safetensors")
            with writing(self.directory):
                full["sha256"] = save_deltas(operation._file, deltas, state)
                write_json(operation_file(self.directory, index, "json"), full)
        self.operations.append(operation)
        return operation


def read_header(directory: Path) -> dict[str, Any] | None:
    """`ledger.json` of a folder, or None when the folder is absent or empty.

    Raises:
        UserError: the folder holds other things, or a ledger of another format.
    """
    file = directory / "ledger.json"
    if not file.exists():
        # A run killed while it wrote its first file leaves a temporary one, which is nobody's data.
        if directory.exists() and (
            not directory.is_dir() or any(not found.name.startswith(".") for found in directory.iterdir())
        ):
            raise UserError(
                f"edit_ledger={directory} is not a ledger (no ledger.json in it) and not empty; give a new folder"
            )
        return None
    header = read_json(file)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else None
        raise UserError(f"{file} has ledger format {found}; this version of lm-eval-edit reads format {FORMAT}")
    lacking = [name for name in ("identity", "extra") if not isinstance(header.get(name), dict)]
    if lacking:
        raise UserError(
            f"{file} is damaged (no {' and no '.join(lacking)}), so nobody knows what its operations belong to; "
            f"nothing was changed. Give another folder"
        )
    extra = header["extra"]
    wrong = [name for name, kind in _EXTRA.items() if name in extra and not isinstance(extra[name], kind)]
    wrong += [name for name in ("context_templates", "second_moments_source") if name not in extra]
    model = extra.get("model") or {}
    if not wrong and not all(isinstance(model.get(name), (str, NoneType)) for name in _LOADED_BY):
        wrong = ["model"]
    if wrong:
        raise UserError(
            f"{file} is damaged (extra: {', '.join(wrong)}: absent, or not of the kind that is written there); "
            f"nothing was changed. Give another folder"
        )
    return header


def mismatch(directory: Path | None, found: Sequence[str]) -> UserError:
    """The error for a ledger that belongs to something else."""
    return UserError(
        f"edit_ledger={directory} belongs to another run:\n"
        + "\n".join(f"    {line}" for line in found)
        + "\n  Give the options it was made with, or another folder; nothing in it was changed"
    )


def open_ledger(
    directory: Path | None, identity: dict[str, Any], extra: dict[str, Any], weights: EditedWeights
) -> Ledger:
    """A ledger to append to: a new one, or what a folder holds.

    Raises:
        UserError: the folder's ledger has another identity (each difference named), or is damaged.
    """
    ledger = Ledger(identity, extra, weights, directory=directory)
    if directory is None:
        return ledger
    header = read_header(directory)
    if header is None:
        with only_writer(directory, "run with this edit_ledger"):
            header = read_header(directory)  # another run may have come first
            if header is None:
                with writing(directory):
                    write_json(directory / "ledger.json", {"format": FORMAT, "identity": identity, "extra": extra})
                return ledger
    found = differences(header["identity"], identity)
    if found:
        raise mismatch(directory, found)
    ledger.extra = header["extra"]
    ledger.operations = read_operations(directory, header)
    return ledger


def check_schedule(directory: Path | None, operations: Sequence[Operation], schedule: Sequence[Sequence[Fact]]) -> None:
    """Check that a ledger's operations are a prefix of the schedule, or the schedule a prefix of them.

    Raises:
        UserError: naming the first operation whose facts differ.
    """
    for done, planned in zip(operations, schedule, strict=False):
        stored, wanted = [f.identity() for f in done.facts], [f.identity() for f in planned]
        if hash_json(stored) == hash_json(wanted):
            continue
        ids = [[fact.get("id") for fact in facts] for facts in (stored, wanted)]
        if ids[0] == ids[1]:
            line = f"operation {done.index} edits the same ids with other contents: {differences(stored, wanted)[0]}"
        else:
            line = (
                f"operation {done.index} edits fact {_ids(ids[0])} in the ledger, fact {_ids(ids[1])} in this schedule"
            )
        if len(wanted) < len(stored) and hash_json(stored[: len(wanted)]) == hash_json(wanted):
            before = sum(len(operation.facts) for operation in operations[: done.index])
            line += f"; it edits {len(stored)} facts at once, so use n_edits={before} or n_edits={before + len(stored)}"
        raise mismatch(directory, [line])


def _ids(ids: Sequence[Any]) -> str:
    return ", ".join(map(str, ids[:5])) + (f", ... ({len(ids)} facts)" if len(ids) > 5 else "")
