"""Cells whose edits are made and which wait for a served model: what lies where, and whether it is whole.

    .serving/MODEL/unedited/          what is known of the unedited model
    .serving/MODEL/ROW/n00005/        the same of a checkpoint, and its adapter/ or checkpoint/ to be served from
        ready.json                    the record; the folder appears whole, or not at all

What waits is nobody's result: the folder of a cell goes when the cell is done, and a run that was stopped finds the
others, so that nothing is edited or written twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_edit._support.files import publish, read_json, write_json
from lm_eval_edit.errors import UserError
from lm_eval_edit.sweep.folder import Cell, SweepFolder
from lm_eval_edit.sweep.worker import Checkpoint

FORMAT = 1
BASE, ADAPTER, CHECKPOINT = "base", "adapter", "checkpoint"
RECORD = "ready.json"
FOLDER, ENGINES = ".serving", ".engines"


@dataclass(frozen=True)
class Prepared:
    """A cell that waits.

    Attributes:
        folder: Where it waits.
        record: What `ready.json` says.
    """

    cell: Cell
    folder: Path
    record: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """base, adapter or checkpoint."""
        return str(self.record["kind"])

    @property
    def weights(self) -> Path | None:
        """The folder of its adapter or checkpoint; None for the unedited model."""
        return None if self.kind == BASE else self.folder / self.kind

    @property
    def dtype(self) -> str:
        """What the model was edited in, and is served in."""
        return str(self.record["dtype"])

    @property
    def reached(self) -> Checkpoint:
        """How the model stood there."""
        held = self.record["reached"]
        return Checkpoint(held["n_edits"], float(held["perplexity"]), held["collapsed"], held["seconds"])


class WaitingRoom:
    """The cells of a sweep that wait.

    Args:
        folder: The sweep's.

    Attributes:
        root: Where they wait.
        engines: Where Ray's actors note the processes of their engines, a folder each.
    """

    def __init__(self, folder: SweepFolder):
        self.root = folder.root / FOLDER
        self.engines = folder.root / ENGINES

    def begin(self, cells: Sequence[Cell], todo: Sequence[Cell]) -> None:
        """Clear up before a run: what waits for cells that are there, and what killed runs left half written.

        Args:
            cells: Of the whole sweep.
            todo: Those of them that are missing.
        """
        for cell in cells:
            if cell not in todo:  # computed since by another engine, or by a run killed before it had cleared up
                self.leave(cell)
        self.tidy()

    def path(self, cell: Cell) -> Path:
        """Where a cell waits."""
        return self.root / cell.path

    def read(self, cell: Cell) -> Prepared | None:
        """A cell that waits; None where it does not, or where what lies there is of no use."""
        folder = self.path(cell)
        try:
            record = read_json(folder / RECORD)
            found = Prepared(cell, folder, record)
            if record["format"] != FORMAT or (found.weights is not None and not found.weights.is_dir()):
                return None
            found.reached  # noqa: B018  that it can be read
        except (UserError, LookupError, TypeError, ValueError):
            return None
        return found

    def put(self, cell: Cell, record: Mapping[str, Any], write: Callable[[Path], None] | None = None) -> Prepared:
        """Let a cell wait.

        Args:
            record: What is known of it; `kind` says what `write` writes.
            write: Fills the empty folder of its adapter or checkpoint.

        Raises:
            CannotWriteError: the disk is full, or the folder cannot be written.
        """
        folder = self.path(cell)
        shutil.rmtree(folder, ignore_errors=True)

        def fill(temporary: Path) -> None:
            if write is not None:
                (temporary / record["kind"]).mkdir()
                write(temporary / record["kind"])
            write_json(temporary / RECORD, {"format": FORMAT, **record})

        publish(folder, fill)
        return Prepared(cell, folder, {"format": FORMAT, **record})

    def leave(self, cell: Cell) -> None:
        """A cell waits no longer; what it waited with is deleted."""
        shutil.rmtree(self.path(cell), ignore_errors=True)

    def tidy(self) -> None:
        """Delete what killed runs left half written, and the folders in which nobody waits."""
        if not self.root.is_dir():
            return
        for folder in sorted(self.root.rglob("*"), reverse=True):
            if folder.is_dir() and (folder.name.startswith(".") or not any(folder.iterdir())):
                shutil.rmtree(folder, ignore_errors=True)
        if not any(self.root.iterdir()):
            self.root.rmdir()
