"""One operation of a ledger: its two files, read and checked; `ledger` says what they are for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

from torch import Tensor

from lm_eval_edit._support.files import hash_json, read_json
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Fact, parse_record
from lm_eval_edit.weights.delta import Delta
from lm_eval_edit.weights.delta_files import kinds, load_deltas, load_state, state_names


@dataclass
class Operation:
    """One editing operation.

    Attributes:
        index: Its position in the schedule, from 0.
        facts: The facts it edited together.
        deltas: Parameter name to update; read from disk when first asked for.
        state: What its editor leaves for later operations; each tensor is read from disk when it is asked for.
        record: Everything else about it, as in its JSON file.
    """

    index: int
    facts: list[Fact]
    record: dict[str, Any]
    _deltas: dict[str, Delta] | None = None
    _state: dict[str, Tensor] | None = None
    _file: Path | None = None
    _seen: tuple[int, int] | None = None  # size and time of the file when its bytes were those recorded

    def stored_in(self, file: Path) -> None:
        """Note that its tensors lie in a file now, which has just been written."""
        self._file, self._seen = file, _stamp(file)

    def _load(self) -> tuple[dict[str, Delta], dict[str, Tensor]]:
        if self._deltas is None or self._state is None:
            self._deltas, self._state = self._read()
        return self._deltas, self._state

    def _read(self) -> tuple[dict[str, Delta], dict[str, Tensor]]:
        seen = _stamp(self._stored)
        try:
            found = load_deltas(self._stored, self.record["sha256"])
        except UserError as error:
            raise _damaged(self._stored, str(error)) from None
        self._seen = seen
        return found

    @property
    def _stored(self) -> Path:
        assert self._file is not None, "what an operation does not hold in memory lies in a file"
        return self._file

    @property
    def deltas(self) -> dict[str, Delta]:
        return self._load()[0]

    @property
    def kinds(self) -> dict[str, type[Delta]]:
        """Parameter name to the kind of its update, from the file's header where it lies in one."""
        if self._deltas is not None or self._file is None:
            return {name: type(delta) for name, delta in self.deltas.items()}
        try:
            return kinds(self._file)
        except UserError as error:
            raise _damaged(self._file, str(error)) from None

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Without any the file's header says so: its deltas are not read, nor hashed, for that."""
        if self._file is None:
            return self._load()[1]
        names = list(self._state) if self._state is not None else self._state_names()
        return _StoredState(self, names) if names else {}

    def read_state(self, name: str) -> Tensor:
        """One tensor of the state in the file, whose other bytes are read only if it has changed since they were.

        Raises:
            UserError: it is not the file that was written.
        """
        if self._seen is None or self._seen != _stamp(self._stored):
            self._read()
        return load_state(self._stored, name)

    def check(self) -> None:
        """Look at the header of the file: whether it is whole, not whether it is the one that was written.

        Raises:
            UserError: it is damaged.
        """
        if self._file is not None:
            self._state_names()

    def receive(self, deltas: Mapping[str, Delta]) -> None:
        """Hold deltas that another process computed; what its editor leaves for later operations stays there."""
        self._deltas, self._state = dict(deltas), {}

    def _state_names(self) -> list[str]:
        try:
            return state_names(self._stored)
        except UserError as error:
            raise _damaged(self._stored, str(error)) from None

    def release(self) -> None:
        """Forget the deltas' tensors if they can be read again from disk."""
        if self._file is not None:
            self._deltas = self._state = None


class _StoredState(Mapping[str, Tensor]):
    """An operation's state in its file. Nothing is kept: what editors sum up of it they hold themselves."""

    def __init__(self, operation: Operation, names: list[str]):
        self._operation, self._names = operation, names

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._operation.read_state(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Totals:
    """Sums over the first n of a run's operations; each operation is looked at once, however often one asks."""

    def __init__(self) -> None:
        self._known: list[tuple[Operation, int, int]] = []

    def of(self, operations: Sequence[Operation], n: int) -> tuple[int, int]:
        """How many facts the first n operations edited, and after how many an answer was another than before.

        Args:
            operations: Those of the run as they are now; since the last call others may have come at the end, or have
                taken the place of the last ones.
            n: At most as many as there are.
        """
        known = self._known
        while known and (len(known) > len(operations) or known[-1][0] is not operations[len(known) - 1]):
            known.pop()
        for operation in operations[len(known) : n]:
            _, edits, changed = known[-1] if known else (None, 0, 0)
            known.append((operation, edits + len(operation.facts), changed + operation.record["answers_changed"]))
        return known[n - 1][1:] if n else (0, 0)


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


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


def read_operations(
    directory: Path, header: Mapping[str, Any], most: int | None = None, first: int = 0
) -> Iterator[Operation]:
    """The operations a ledger's folder holds, in order; their tensors stay on disk until asked for.

    Each is read when its turn comes: whoever stops after k has opened the files of k.

    Args:
        directory: The folder.
        header: Its `ledger.json`, to which they must belong.
        most: How many are wanted; None for all.
        first: Which of them is the first.

    Raises:
        UserError: one is damaged, or is of another run.
    """
    run = hash_json(header["identity"])
    place = operation_file(directory, 0, "json").parent
    if place.exists() and not place.is_dir():
        raise UserError(f"{place} is a file; a ledger keeps its operations in a folder of that name")
    for index in islice(count(first), most):
        file = operation_file(directory, index, "json")
        if not file.exists():
            return
        yield _read_operation(file, index, run)


def count_operations(directory: Path) -> int:
    """How many operations a folder holds, from the names of its files: those before the first that is not there."""
    place = operation_file(directory, 0, "json").parent
    try:
        names = set(os.listdir(place))
    except FileNotFoundError:
        return 0
    return next(n for n in count() if operation_file(directory, n, "json").name not in names)


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
