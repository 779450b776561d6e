"""The folder a sweep writes, and the only place that writes into it.

    sweep.json                        the design, its rows, versions
    README.md                         this layout, for whoever finds the folder
    summary.csv                       every metric of every cell, one line each
    MODEL/unedited/                   cell: the unedited model, shared by the model's rows
    MODEL/ROW/n00005/                 cell: the model after 5 edits of that row
    MODEL/ROW/n00000/                 cell: before the edits, only for tasks that ask about the row's own facts
    MODEL/ROW/edits/                  the row's ledger: every edit, replayable (at once: edits/n00005/ for each cell)
    .serving/                         cells that wait for vLLM, until they are served (see `prepared`)
    .engines/                         processes of vLLM on Ray's nodes, while they live

A cell holds what `lm_eval --output_path --log_samples` writes, `results_DATE.json` and `samples_TASK_DATE.jsonl`, and
`cell.json`, written last: status, reason, hashes of the other files. Without it, or with a file that does not have its
hash, the cell does not count and is computed again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lm_eval_edit._support.differences import differences
from lm_eval_edit._support.files import read_json, sha256, write_bytes, write_json, writing
from lm_eval_edit._support.locks import only_writer
from lm_eval_edit._support.spreadsheet import csv_text
from lm_eval_edit._support.terminal import printable
from lm_eval_edit.errors import UserError
from lm_eval_edit.sweep.design import Design, Row, is_plain

FORMAT = 1
DONE, COLLAPSED, FAILED = "done", "collapsed", "failed"

_README = """\
# A sweep of lm-eval-edit: {name}

{description}

- `sweep.json`: what was asked for. Running the same sweep into this folder again computes what is missing.
- `MODEL/unedited/`: the unedited model. `MODEL/ROW/n00005/`: the model after 5 edits of that row.
- Each of these holds `results_DATE.json` and `samples_TASK_DATE.jsonl`, as `lm_eval` writes them, and `cell.json` with
  its state: done; collapsed (not evaluated, with the reason); failed (tried again by the next run).
- `MODEL/ROW/edits/`: the edits themselves, which `lm_eval --model edited_hf --model_args edit_ledger=...` replays.
- `summary.csv`: every figure of every cell.

`lm-eval-edit plot` and `lm-eval-edit report` draw and describe this folder; `lm-eval-edit compare` takes two of its
cells.
"""


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep: where it lies and what it is of.

    Attributes:
        model: The model's label.
        row: The row; None for the unedited model.
        n_edits: How many facts are edited; 0 for unedited.
        tasks: Names of tasks and groups evaluated in it.
    """

    model: str
    row: Row | None
    n_edits: int
    tasks: tuple[str, ...]

    @property
    def path(self) -> str:
        """Its folder below the sweep's."""
        return f"{self.model}/unedited" if self.row is None else f"{self.model}/{self.row.name}/n{self.n_edits:05d}"


class SweepFolder:
    """A sweep's output folder.

    Args:
        root: The folder; need not exist.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)

    # ------------------------------------------------------------------------------------------------------ the design

    def check(self, design: Design) -> list[str]:
        """Why this folder cannot take the design's results, one sentence a reason."""
        if self.root.exists() and not self.root.is_dir():
            return [f"{self.root} is a file; give a folder"]
        file = self.root / "sweep.json"
        if not file.exists():
            # A run killed before it had written sweep.json leaves a temporary file, which is nobody's data.
            if self.root.exists() and any(not found.name.startswith(".") for found in self.root.iterdir()):
                return [f"{self.root} is not empty and holds no sweep (no sweep.json); give a new folder"]
            return []
        held = read_json(file)
        if not isinstance(held, dict) or held.get("format") != FORMAT:
            return [f"{file} is no sweep.json of this version of lm-eval-edit; give a new folder"]
        lines = differences(held["design"], json.loads(json.dumps(design.identity())), where="in the folder")
        if not lines:
            return []
        named = "\n".join(f"      {line}" for line in lines)
        return [f"{self.root} belongs to another design; nothing in it was changed. Give another folder\n{named}"]

    def claim(
        self,
        design: Design,
        rows: Sequence[Row],
        about_schedule: Sequence[str] = (),
        about_model: bool = True,
    ) -> None:
        """Create the folder for a design, or take up one that holds it. `check` has been passed.

        Args:
            about_schedule: The tasks about the rows' own facts, which are also asked before the edits.
            about_model: Whether there are other tasks, for which the unedited model is evaluated.

        Raises:
            CannotWriteError: the folder cannot be written.
        """
        content = {
            "format": FORMAT,
            "name": design.name,
            "description": design.description,
            "figure": dict(design.figure),
            "published": dict(design.published),
            "design": design.identity(),
            "about_schedule": list(about_schedule),
            "about_model": about_model,
            "rows": [
                {
                    "name": row.name,
                    "model": row.model.label,
                    "editor": row.method.editor,
                    "method": row.method.label,
                    "dataset": row.dataset,
                    "edit_seed": row.edit_seed,
                    "edit_batch_size": row.edit_batch_size,
                    "checkpoints": list(row.checkpoints),
                    "left_out": {str(n): why for n, why in row.left_out.items()},
                }
                for row in rows
            ],
        }
        readme = _README.format(name=design.name, description=design.description or "No description.")
        with writing(self.root):
            # First of all files: a folder with others and without this one is somebody else's.
            file, content = self.root / "sweep.json", json.loads(json.dumps(content))
            if not file.exists() or read_json(file) != content:
                write_json(file, content)
            if not (self.root / "README.md").exists():
                write_bytes(self.root / "README.md", readme.encode())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other sweeps out of this folder; the system lets go when this process ends, however it ends.

        Where the file system has no locks (some parallel ones), a warning says so.

        Raises:
            UserError: another process has it.
            CannotWriteError: the folder cannot be written.
        """
        with only_writer(self.root, "sweep"):
            yield

    # ------------------------------------------------------------------------------------------------------- the cells

    def path(self, cell: Cell) -> Path:
        """A cell's folder."""
        return self.root / cell.path

    def ledger(self, row: Row, schedule: Sequence[int]) -> Path:
        """The folder of the edits of one of a row's schedules."""
        edits = self.root / row.model.label / row.name / "edits"
        return edits / f"n{schedule[-1]:05d}" if row.at_once else edits

    def state(self, cell: Cell) -> tuple[str | None, str | None]:
        """(status, why): (None, reason) for a damaged cell, (None, None) for one that is not there."""
        return cell_state(self.path(cell))

    def write(
        self,
        cell: Cell,
        record: Mapping[str, Any],
        results: Mapping[str, Any] | None = None,
        samples: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    ) -> None:
        """Store a cell, replacing what was left of an earlier try; a failure without figures leaves one with some.

        Args:
            record: `status`, `reason` and what else belongs into cell.json.
            results: A results dict of lm-eval without samples; None for a cell that was not evaluated.
            samples: Task -> lines for its samples file, as the harness writes them.

        Raises:
            CannotWriteError: the disk is full or the folder cannot be written; cells stored before are untouched.
        """
        folder = self.path(cell)
        if record["status"] == FAILED and results is None and self._has_figures(folder):
            return
        with writing(folder):
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
            # Colons are no characters for a file's name everywhere; this is the harness's own way of writing the time.
            date = datetime.now().isoformat().replace(":", "-")
            files: dict[str, str] = {}

            def store(name: str, content: bytes) -> None:
                write_bytes(folder / name, content)
                files[name] = sha256(content)

            if strange := [task for task in samples or {} if not is_plain(task)]:
                raise UserError(f"{printable(repr(strange[0]))}: a task of this name can have no file of samples")
            for task, lines in (samples or {}).items():
                store(f"samples_{task}_{date}.jsonl", "".join(map(_line, lines)).encode("utf-8", "surrogatepass"))
            if results is not None:
                store(f"results_{date}.json", json.dumps(results, indent=2, ensure_ascii=False).encode())
            row = None if cell.row is None else cell.row.name
            content = {
                "format": FORMAT,
                "model": cell.model,
                "row": row,
                "n_edits": cell.n_edits,
                "n_operations": 0 if cell.row is None else cell.row.operations(cell.n_edits),
                **record,
                "files": files,
            }
            write_json(folder / "cell.json", content)

    def _has_figures(self, folder: Path) -> bool:
        return cell_state(folder)[0] == FAILED and bool(read_json(folder / "cell.json")["files"])


def _line(sample: Mapping[str, Any]) -> str:
    return json.dumps(sample, ensure_ascii=False) + "\n"


def cell_state(folder: Path) -> tuple[str | None, str | None]:
    """(status, why) of the cell in a folder; status is None where it is absent, or damaged for the reason given."""
    file = folder / "cell.json"
    if not file.exists():
        left = folder.exists() and any(folder.iterdir())
        return None, "it was not finished" if left else None
    try:
        record = read_json(file)
        if strange := [name for name in record["files"] if not is_plain(name)]:
            return None, f"cell.json names a file outside its folder ({printable(repr(strange[0]))})"
        for name, digest in record["files"].items():
            if sha256((folder / name).read_bytes()) != digest:
                return None, f"{name} was changed or is incomplete"
        return record["status"], record.get("reason")
    except (UserError, KeyError, TypeError, AttributeError):
        return None, "cell.json is not readable"
    except FileNotFoundError as error:
        return None, f"{Path(error.filename).name} is missing"


def write_summary(root: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """`summary.csv`: one line for each metric of each cell."""
    names = ("model", "row", "editor", "dataset", "edit_seed", "edit_batch_size", "n_edits", "n_operations", "status",
             "task", "metric", "value", "stderr", "measures")  # fmt: skip
    file, content = root / "summary.csv", csv_text(names, rows).encode()
    with writing(root):
        if not file.exists() or file.read_bytes() != content:
            write_bytes(file, content)
