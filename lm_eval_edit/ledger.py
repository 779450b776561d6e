"""The edit ledger: every operation of a schedule as a file, so that an edited model can be made again, bit for bit.

    ledger.json            what the operations belong to: model, editor, hyper-parameters, templates, second moments
    ops/00000.safetensors  the operation's deltas, and the state its editor keeps
    ops/00000.json         its facts, figures and hashes; written last, so an operation is there whole or not at all

A run that was stopped replays what is there and goes on. Replaying *applies* the deltas, in order, to the unedited
model: the state after n operations is a prefix of the state after more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lm_eval_edit._differences import differences
from lm_eval_edit._files import hash_json, read_json, write_json, writing
from lm_eval_edit.delta import Delta, holds_state, load_deltas, save_deltas
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts import Fact, parse_record
from lm_eval_edit.weights import EditedWeights

logger = logging.getLogger("lm_eval_edit")

FORMAT = 1


@dataclass
class Operation:
    """One editing operation.

    Attributes:
        index: Its position in the schedule, from 0.
        facts: The facts it edited together.
        deltas: Parameter name to update; read from disk when first asked for.
        state: What its editor leaves for later operations.
        record: Everything else about it, as in its JSON file.
    """

    index: int
    facts: list[Fact]
    record: dict[str, Any]
    _deltas: dict[str, Delta] | None = None
    _state: dict[str, Tensor] | None = None
    _file: Path | None = None

    def _load(self) -> None:
        if self._deltas is None:
            try:
                self._deltas, self._state = load_deltas(self._file, self.record["sha256"])
            except UserError as error:
                raise _damaged(self._file, str(error)) from None

    @property
    def deltas(self) -> dict[str, Delta]:
        self._load()
        return self._deltas

    @property
    def state(self) -> dict[str, Tensor]:
        """Without any the file's header says so: its deltas are not read, nor hashed, for that."""
        if self._state is None and not self._holds_state():
            return {}
        self._load()
        return self._state

    def receive(self, deltas: Mapping[str, Delta]) -> None:
        """Hold deltas that another process computed; what its editor leaves for later operations stays there."""
        self._deltas, self._state = dict(deltas), {}

    def _holds_state(self) -> bool:
        try:
            return holds_state(self._file)
        except UserError as error:
            raise _damaged(self._file, str(error)) from None

    def release(self) -> None:
        """Forget the deltas' tensors if they can be read again from disk."""
        if self._file is not None:
            self._deltas = self._state = None


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
        full = {"index": index, "facts": [fact.record() for fact in facts], **record}
        deltas = {name: delta.to("cpu") for name, delta in deltas.items()}
        state = {name: tensor.to("cpu") for name, tensor in state.items()}
        operation = Operation(index, list(facts), full, deltas, state)
        if self.directory is not None:
            operation._file = _operation_file(self.directory, index, "safetensors")
            with writing(self.directory):
                full["sha256"] = save_deltas(operation._file, deltas, state)
                write_json(_operation_file(self.directory, index, "json"), full)
        self.operations.append(operation)
        return operation


def _operation_file(directory: Path, index: int, suffix: str) -> Path:
    return directory / "ops" / f"{index:05d}.{suffix}"


#: What every operation's record has; see `EditRun` for the figures.
_RECORDED = (
    "index", "facts", "sha256", "fingerprint", "seconds", "delta_norms", "ranks", "details", "before", "after",
    "answers_changed",
)  # fmt: skip


def _damaged(file: Path, why: str) -> UserError:
    """The error for an operation that cannot be read, with its remedy."""
    return UserError(
        f"{why}. Nothing was changed. Delete {file.with_suffix('')}.* and all operations after it to compute them "
        f"again; the {int(file.stem)} before it stay as they are"
    )


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
    return header


def mismatch(directory: Path, found: Sequence[str]) -> UserError:
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
        with writing(directory):
            write_json(directory / "ledger.json", {"format": FORMAT, "identity": identity, "extra": extra})
        return ledger
    found = differences(header["identity"], identity)
    if found:
        raise mismatch(directory, found)
    ledger.extra = header["extra"]
    ledger.operations = read_operations(directory)
    return ledger


def read_operations(directory: Path) -> list[Operation]:
    """The operations a ledger's folder holds, first to last; their tensors stay on disk until asked for.

    Raises:
        UserError: one is damaged.
    """
    operations: list[Operation] = []
    while (file := _operation_file(directory, len(operations), "json")).exists():
        operations.append(_read_operation(file, len(operations)))
    return operations


def _read_operation(file: Path, index: int) -> Operation:
    try:
        record = read_json(file)
        given = record if isinstance(record, dict) else {}
        lacking = [name for name in _RECORDED if name not in given]
        if lacking:
            raise UserError(f"{file} is damaged (no {', '.join(lacking)} in it)")
        if record["index"] != index:
            raise UserError(f"{file} is damaged (it is operation {record['index']})")
        tensors = file.with_suffix(".safetensors")
        if not tensors.is_file():
            raise UserError(f"{tensors} is missing")
        if not isinstance(record["facts"], list):
            raise UserError(f"{file} is damaged (its facts are no list)")
        return Operation(index, [_fact(entry) for entry in record["facts"]], record, _file=tensors)
    except UserError as error:
        raise _damaged(file, str(error)) from None


def _fact(record: Mapping[str, Any]) -> Fact:
    """A fact as `Fact.record` wrote it, without an id if it had none."""
    return replace(parse_record(record, "a fact of the ledger", default_id=""), id=record.get("id"))


def check_schedule(ledger: Ledger, operations: Sequence[Sequence[Fact]]) -> None:
    """Check that the ledger's operations are a prefix of the schedule, or the schedule a prefix of them.

    Raises:
        UserError: naming the first operation whose facts differ.
    """
    for done, planned in zip(ledger.operations, operations, strict=False):
        stored, wanted = [f.record() for f in done.facts], [f.record() for f in planned]
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
            before = sum(len(operation.facts) for operation in ledger.operations[: done.index])
            line += f"; it edits {len(stored)} facts at once, so use n_edits={before} or n_edits={before + len(stored)}"
        raise mismatch(ledger.directory, [line])


def _ids(ids: Sequence[Any]) -> str:
    return ", ".join(map(str, ids[:5])) + (f", ... ({len(ids)} facts)" if len(ids) > 5 else "")
