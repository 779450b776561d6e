"""One operation of a ledger: its two files, read and checked; `ledger` says what they are for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lm_eval_edit._support.files import hash_json, read_json
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Fact, parse_record
from lm_eval_edit.weights.delta import Delta, holds_state, load_deltas


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

    def _load(self) -> tuple[dict[str, Delta], dict[str, Tensor]]:
        if self._deltas is None or self._state is None:
            try:
                self._deltas, self._state = load_deltas(self._stored, self.record["sha256"])
            except UserError as error:
                raise _damaged(self._stored, str(error)) from None
        return self._deltas, self._state

    @property
    def _stored(self) -> Path:
        assert self._file is not None, "what an operation does not hold in memory lies in a file"
        return self._file

    @property
    def deltas(self) -> dict[str, Delta]:
        return self._load()[0]

    @property
    def state(self) -> dict[str, Tensor]:
        """Without any the file's header says so: its deltas are not read, nor hashed, for that."""
        if self._state is None and not self._holds_state():
            return {}
        return self._load()[1]

    def check(self) -> None:
        """Look at the header of the file: whether it is whole, not whether it is the one that was written.

        Raises:
            UserError: it is damaged.
        """
        if self._file is not None:
            self._holds_state()

    def receive(self, deltas: Mapping[str, Delta]) -> None:
        """Hold deltas that another process computed; what its editor leaves for later operations stays there."""
        self._deltas, self._state = dict(deltas), {}

    def _holds_state(self) -> bool:
        try:
            return holds_state(self._stored)
        except UserError as error:
            raise _damaged(self._stored, str(error)) from None

    def release(self) -> None:
        """Forget the deltas' tensors if they can be read again from disk."""
        if self._file is not None:
            self._deltas = self._state = None


def operation_file(directory: Path, index: int, suffix: str) -> Path:
    """Where an operation is stored: its deltas (safetensors) or its record (json)."""
    return directory / "ops" / f"{index:05d}.{suffix}"


#: What every operation's record has; see `EditRun` for the figures.
_RECORDED: dict[str, type | tuple[type, ...]] = {
    "index": int, "facts": list, "sha256": str, "fingerprint": str, "seconds": (int, float), "delta_norms": dict,
    "ranks": dict, "details": dict, "before": dict, "after": dict, "answers_changed": int,
}  # fmt: skip


def _damaged(file: Path, why: str) -> UserError:
    """The error for an operation that cannot be read, with its remedy."""
    return UserError(
        f"{why}. Nothing was changed. Delete {file.with_suffix('')}.* and all operations after it to compute them "
        f"again; the {int(file.stem)} before it stay as they are"
    )


def read_operations(directory: Path, header: Mapping[str, Any]) -> list[Operation]:
    """The operations a ledger's folder holds, first to last; their tensors stay on disk until asked for.

    Args:
        directory: The folder.
        header: Its `ledger.json`, to which they must belong.

    Raises:
        UserError: one is damaged, or is of another run.
    """
    run = hash_json(header["identity"])
    place = operation_file(directory, 0, "json").parent
    if place.exists() and not place.is_dir():
        raise UserError(f"{place} is a file; a ledger keeps its operations in a folder of that name")
    operations: list[Operation] = []
    while (file := operation_file(directory, len(operations), "json")).exists():
        operations.append(_read_operation(file, len(operations), run))
    return operations


def _read_operation(file: Path, index: int, run: str) -> Operation:
    try:
        record = read_json(file)
        given = record if isinstance(record, dict) else {}
        lacking = [name for name in _RECORDED if name not in given]
        if lacking:
            raise UserError(f"{file} is damaged (no {', '.join(lacking)} in it)")
        if wrong := [name for name, kind in _RECORDED.items() if not isinstance(record[name], kind)]:
            raise UserError(f"{file} is damaged ({', '.join(wrong)}: not of the kind that is written there)")
        if record["index"] != index:
            raise UserError(f"{file} is damaged (it is operation {record['index']})")
        if record.get("run", run) != run:  # earlier versions did not write it
            raise UserError(
                f"{file} is of another run than ledger.json beside it: two runs have written this folder, or files "
                f"were copied together"
            )
        tensors = file.with_suffix(".safetensors")
        if not tensors.is_file():
            raise UserError(f"{tensors} is missing")
        return Operation(index, [_fact(entry) for entry in record["facts"]], record, _file=tensors)
    except UserError as error:
        raise _damaged(file, str(error)) from None


def _fact(record: Mapping[str, Any]) -> Fact:
    """A fact as `Fact.record` wrote it, without an id if it had none."""
    return replace(parse_record(record, "a fact of the ledger", default_id=""), id=record.get("id"))
