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
from typing import Any

from torch import Tensor

from lm_eval_edit._support.differences import differences
from lm_eval_edit._support.files import hash_json, write_json, writing
from lm_eval_edit._support.locks import only_writer
from lm_eval_edit.edits.header import FORMAT, mismatch, read_header
from lm_eval_edit.edits.operations import Operation, Totals, count_operations, operation_file, read_operations
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.weights.delta import Delta
from lm_eval_edit.weights.delta_files import save_deltas
from lm_eval_edit.weights.edited import EditedWeights
from lm_eval_edit.weights.fingerprint import hash_named
from lm_eval_edit.weights.touched import Copies

__all__ = ["Ledger", "check_schedule", "mismatch", "open_ledger", "read_header"]

logger = logging.getLogger("lm_eval_edit")


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
        correction: What the model carries of `finish` beside them; no further operation starts from there.
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
    edit_more: Callable[[Sequence[Fact], bool], None] | None = field(default=None, repr=False, compare=False)
    _uncorrected: dict[str, Copies] = field(default_factory=dict, repr=False, compare=False)
    _totals: Totals = field(default_factory=Totals, repr=False, compare=False)
    _seen: int | None = field(default=None, repr=False, compare=False)  # when the folder of operations last changed

    def __post_init__(self) -> None:
        self.weights.owner = self

    def edit(self, facts: Sequence[Fact], ask_all: bool = True) -> None:
        """Edit more facts, behind those that are there: the same editor, with the state that its operations have left.

        The new facts begin an operation of their own, in batches as large as the run's.

        Args:
            facts: What to edit, first to last.
            ask_all: Whether all facts, those of earlier calls included, are asked at the end (`guards["retained"]`,
                `min_success`), which takes longer the more there are. False asks those of this call: what a call
                costs then does not grow with the edits before it.

        Raises:
            ConfigurationError: with every problem of the facts; nothing was changed.
            EditError: an edit failed its guards; the model is restored, the ledger holds the operations before it.
        """
        if self.edit_more is None:
            raise UserError("this ledger belongs to no run that could go on; give its folder to edit_model")
        self.edit_more(facts, ask_all)

    def restore(self) -> None:
        """Put the model back to its unedited weights, bit for bit. The operations stay in the ledger."""
        self.weights.restore()
        self.applied, self.correction, self._uncorrected = 0, {}, {}

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
        if self.applied and self.fingerprint() != self.operations[self.applied - 1].record["fingerprint"]:
            logger.warning(
                "the replayed weights differ from those recorded in %s in their last bits: "
                "another processor or library rounds differently",
                self.directory,
            )

    def compare_with_weights(self) -> None:
        """Warn where the edited weights are not what the last operation left: something else has changed them."""
        if self.applied and self.fingerprint() != self.operations[self.applied - 1].record["fingerprint"]:
            logger.warning(
                "something else than the ledger's operations has changed edited weights while they were computed: the "
                "model is not what its ledger makes. restore() and a run with this ledger give that"
            )

    def rewind(self, n_operations: int) -> int:
        """Take off what the model carries and does not belong to the state after n operations.

        Returns:
            How many operations the model carries then.
        """
        if self.applied > n_operations or not self.correction.keys() <= self._uncorrected.keys():
            self.restore()
        self.weights.put_back(self._uncorrected)
        self.correction, self._uncorrected = {}, {}
        return self.applied

    def close(self) -> None:
        """Apply the editor's last correction for the operations the model carries now."""
        if not self.correction:
            self.correct(self.finish(self.weights.changes()))

    def correct(self, correction: dict[str, Delta]) -> None:
        """Apply a last correction. What it changes is kept as it was, so that editing goes on from there."""
        self._uncorrected = self.weights.copied(name for name in correction if name in self.weights.touched)
        self.weights.apply(correction)
        self.correction = correction

    @property
    def n_edits(self) -> int:
        """How many facts the operations edited."""
        return self._totals.of(self.operations, len(self.operations))[0]

    def applied_totals(self) -> tuple[int, int]:
        """How many facts the operations that the model carries edited, and after how many an answer was another."""
        return self._totals.of(self.operations, self.applied)

    @property
    def applied_operations(self) -> list[Operation]:
        """The operations the model carries now."""
        return self.operations[: self.applied]

    @property
    def hash_name(self) -> str:
        """The hash that its fingerprints are made with; ledgers of earlier versions keep theirs."""
        return hash_named(self.identity["model"])

    def fingerprint(self, unseen: bool = True) -> str:
        """A hash of the model's weights as they stand.

        Args:
            unseen: As in `EditedWeights.fingerprint`.
        """
        return self.weights.fingerprint(self.identity["model"]["fingerprint"], self.hash_name, unseen)

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
            self._take_up(self.directory, header, schedule)
            yield

    def _take_up(self, directory: Path, header: Mapping[str, Any], schedule: Sequence[Sequence[Fact]]) -> None:
        """What others have done to the operations in the folder since they were read; nothing is read where nobody has.

        Their folder tells: adding or taking away a file changes its time. Times are some milliseconds coarse, so the
        two places where it would happen are looked at besides.
        """
        known, folder = len(self.operations), operation_file(directory, 0, "json").parent
        last_is_there = not known or operation_file(directory, known - 1, "json").exists()
        next_is_there = operation_file(directory, known, "json").exists()
        if last_is_there and not next_is_there and self._seen == _changed_at(folder):
            return
        self._seen = _changed_at(folder)
        there = min(count_operations(directory), len(schedule))
        if there != known:
            self.operations = self.operations[:there]
            self.operations += read_operations(directory, header, max(there - known, 0), known)
            check_schedule(directory, self.operations, schedule, min(known, there))

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
        facts_as_stored = [fact.record() for fact in facts]  # with what an export's tasks ask, which no edit depends on
        full = {"index": index, "run": hash_json(self.identity), "facts": facts_as_stored, **record}
        deltas = {name: delta.to("cpu") for name, delta in deltas.items()}
        state = {name: tensor.to("cpu") for name, tensor in state.items()}
        operation = Operation(index, list(facts), full, deltas, state)
        if self.directory is not None:
            file = operation_file(self.directory, index, "safetensors")
            with writing(self.directory):
                full["sha256"] = save_deltas(file, deltas, state)
                write_json(operation_file(self.directory, index, "json"), full)
            operation.stored_in(file)
            self._seen = _changed_at(file.parent)
        self.operations.append(operation)
        return operation


def _changed_at(folder: Path) -> int | None:
    """When a file of a folder was last added, replaced or taken away; None where there is no such folder."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return None


def open_ledger(
    directory: Path | None,
    identity: dict[str, Any],
    extra: dict[str, Any],
    weights: EditedWeights,
    most: int | None = None,
) -> Ledger:
    """A ledger to append to: a new one, or what a folder holds.

    Args:
        directory: The folder; None for none.
        identity, extra, weights: See `Ledger`.
        most: How many of the folder's operations are wanted, from the first; None for all.

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
    ledger._seen = _changed_at(operation_file(directory, 0, "json").parent)
    ledger.operations = list(read_operations(directory, header, most))
    return ledger


def check_schedule(
    directory: Path | None, operations: Sequence[Operation], schedule: Sequence[Sequence[Fact]], first: int = 0
) -> None:
    """Check that a ledger's operations are a prefix of the schedule, or the schedule a prefix of them.

    Args:
        directory: The ledger's folder.
        operations, schedule: To be compared.
        first: The operations before it are known to agree.

    Raises:
        UserError: naming the first operation whose facts differ.
    """
    for done, planned in zip(operations[first:], schedule[first:], strict=False):
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
