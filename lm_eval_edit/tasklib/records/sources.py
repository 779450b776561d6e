"""Where records come from, decided once for all task families.

The rule: `data_dir` (a folder, or the word `demo`) always wins. Without it, a run that names no model, or `demo`, gets
the demo data, with a warning; any other run gets the hub's.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_edit import demo
from lm_eval_edit.errors import ConfigurationError, UserError
from lm_eval_edit.tasklib.arguments import given, named_model
from lm_eval_edit.tasklib.records import hub, layouts
from lm_eval_edit.tasklib.records.layouts import Placed
from lm_eval_edit.tasklib.records.sets import RecordSet

logger = logging.getLogger("lm_eval_edit")

DEMO_DATA = demo.DATA


@dataclass(frozen=True)
class Source:
    """Where a task's records are.

    Attributes:
        name: What results call it: `demo`, `hub`, `folder:jsonl` or `folder:paper`.
        found: The file; None on the hub.
    """

    task: str
    name: str
    found: layouts.Found | None


def folder_of(data_dir: Any) -> Path:
    """The folder that `data_dir` means."""
    return DEMO_DATA if data_dir == demo.NAME else Path(str(data_dir)).expanduser()


def place_of(metadata: Mapping[str, Any]) -> str | None:
    """The `data_dir` that a run's data come from, a folder or the word `demo`; None: the hub.

    Raises:
        UserError: it is no folder.
    """
    data_dir = metadata.get("data_dir")
    if not given(data_dir):
        return demo.NAME if named_model(dict(metadata)) is None else None
    if problems := check_data_dir(data_dir):
        raise UserError(problems[0])
    return str(data_dir)


def resolve(records: RecordSet, metadata: dict[str, Any]) -> Source:
    """Decide where records are. Reads nothing, and works before any model is loaded.

    Args:
        records: What is wanted.
        metadata: All model arguments and `--metadata`; `data_dir` and the model's name are looked at.

    Raises:
        UserError: The folder or the wanted file is not there; the message lists every path that was looked for.
    """
    data_dir = place_of(metadata)
    if data_dir is None:
        return Source(records.name, "hub", None)
    folder = folder_of(data_dir)
    found = layouts.locate(records, folder)
    if found is None:
        looked = "\n".join(f"  - {candidate.path}" for candidate in layouts.candidates(records, folder))
        raise UserError(f"data_dir={data_dir} holds no data for {records.name}; looked for\n{looked}")
    return Source(records.name, demo.NAME if data_dir == demo.NAME else f"folder:{found.layout}", found)


def check_data_dir(data_dir: Any) -> list[str]:
    """What is wrong with a `data_dir` itself, one sentence a problem. Which files it holds is for `check`."""
    if not given(data_dir):
        return []
    folder = folder_of(data_dir)
    if folder.is_dir():
        return []
    return [f"data_dir={data_dir}: {'not a folder' if folder.exists() else 'no such folder'}"]


def check(wanted: Iterable[RecordSet], metadata: dict[str, Any]) -> None:
    """Check that all the records can be found, before anything is loaded.

    Args:
        wanted: What the run's tasks need.
        metadata: All model arguments and `--metadata`.

    Raises:
        ConfigurationError: naming every task without data and what was looked for.
    """
    problems = check_data_dir(metadata.get("data_dir"))
    for records in [] if problems else wanted:
        try:
            resolve(records, metadata)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise ConfigurationError(problems)


def check_offline(wanted: Iterable[RecordSet], metadata: dict[str, Any]) -> None:
    """Where the hub is set offline, check that what is needed of it was kept by an earlier run.

    With the hub in reach data are loaded when they are needed: that takes minutes the first time.

    Args:
        wanted, metadata: As for `check`, which has passed.

    Raises:
        UserError: naming every task whose data are not there.
    """
    of_hub = [records for records in wanted if resolve(records, metadata).name == "hub"]
    if not of_hub or not hub.is_offline():
        return
    if lacking := [records for records in of_hub if not hub.is_here(records)]:
        named = ", ".join(f"{records.name} ({records.hub[0].path})" for records in lacking)
        files = ", ".join(dict.fromkeys(f"{records.stems[0]}.jsonl" for records in lacking))
        theirs = "" if any(records.paper is None for records in lacking) else " or the paper's task-data"
        raise UserError(
            f"no data for {named}: the Hugging Face hub is set offline (HF_HUB_OFFLINE) and no earlier run has kept "
            f"them. Give a folder that holds them, data_dir=FOLDER in --model_args or --metadata, with {files}{theirs} "
            f"in it (data_dir={demo.NAME}: the demo's miniatures), or let the hub be asked"
        )


@functools.cache
def _warn_demo() -> None:
    """Once for each process."""
    logger.warning(
        "demo data: not a benchmark result (real data: pretrained=<model> for the hub's, or data_dir=<folder>)"
    )


def read(records: RecordSet, metadata: dict[str, Any]) -> tuple[list[Placed], dict[str, Any]]:
    """All the records, and where they come from: `source`, of a file also `file` and `sha256`.

    Raises:
        UserError: No data, broken data, or no network.
    """
    source = resolve(records, metadata)
    if source.found is None:
        placed, name = hub.load(records)
        return placed, {"source": name}
    if source.name == demo.NAME:
        _warn_demo()
    placed = layouts.read(source.found)
    return placed, {"source": source.name, "file": str(source.found.path), "sha256": _sha256(source.found.path)}


def _sha256(path: Path) -> str:
    """Hash of a file, or of a folder's files in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        digest.update(file.read_bytes())
    return digest.hexdigest()
